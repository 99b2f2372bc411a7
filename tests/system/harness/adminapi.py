# SPDX-License-Identifier: Apache-2.0
"""`Admin` over gRPC with a credential file, as a program other than licplane would use it."""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from licapi.control.v1 import admin_pb2, admin_pb2_grpc

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.+?-----END \1-----\n?", re.DOTALL)


class AdminClient:
    """A connection to the mutual TLS listener as an administrator."""

    def __init__(self, address: str, identity: Path) -> None:
        blocks = [(match[1], match[0]) for match in _BLOCK.finditer(identity.read_bytes())]
        key = next(block for name, block in blocks if name.endswith(b"PRIVATE KEY"))
        certificates = [block for name, block in blocks if name == b"CERTIFICATE"]
        credentials = grpc.ssl_channel_credentials(
            certificates[-1], key, b"".join(certificates[:-1])
        )
        self._channel = grpc.secure_channel(
            f"ipv4:{address}", credentials, options=[("grpc.enable_http_proxy", 0)]
        )
        self.stub: Any = admin_pb2_grpc.AdminStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.close()

    def change(self, *, dry_run: bool = False, etag: str = "") -> admin_pb2.Change:
        """What stands in each changing request."""
        return admin_pb2.Change(
            request_id=uuid.uuid4().hex, dry_run=dry_run, etag=etag, reason="test"
        )

    def set_license_state(
        self, license: str, action: str = "revoke", **fields: Any
    ) -> admin_pb2.ChangeResponse:
        """Revoke, suspend or reinstate."""
        found: admin_pb2.ChangeResponse = self.stub.SetLicenseState(
            admin_pb2.SetLicenseStateRequest(
                change=self.change(**fields), license=license, action=action
            ),
            timeout=60,
        )
        return found
