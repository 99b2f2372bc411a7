# SPDX-License-Identifier: Apache-2.0
"""Somebody between a host and its control plane who has everything but the issuer's key.

It has a certificate of the control plane's own CA (so the host takes it for the server) and the
host's stolen key and certificate (so the server takes it for the host), and passes the messages of
the sync stream on, changed as a test says. Only signatures of the issuer's key can stop it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from tests.bench.control_peer import Identity, target
from tests.system.harness.controlplane import ControlPlane, Host, address

from licagent.store.identity import IdentityStore
from licagent.store.statedir import StateDir
from licapi.control.v1 import sync_pb2, sync_pb2_grpc

Change = Callable[[sync_pb2.ServerMessage], Iterable[sync_pb2.ServerMessage]]


def as_it_is(message: sync_pb2.ServerMessage) -> Iterable[sync_pb2.ServerMessage]:
    """An honest proxy."""
    return (message,)


def stolen(host: Host) -> Identity:
    """The host's identity, as whoever reads its disk has it."""
    return identity_in(host.agent.folder / "state")


def identity_in(folder: Path) -> Identity:
    """The identity in a state folder."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    with tempfile.TemporaryDirectory() as copy:  # the daemon has the original locked
        for file in folder.glob("identity*"):
            shutil.copy2(file, copy)
        with StateDir(copy) as state:
            kept = IdentityStore(state).load()
    assert kept is not None

    def pem(ders: Iterable[bytes]) -> bytes:
        found = (x509.load_der_x509_certificate(der) for der in ders)
        return b"".join(each.public_bytes(Encoding.PEM) for each in found)

    return Identity(
        host_id=kept.host_id,
        key_pem=kept.key_pem,
        chain_pem=pem(kept.certificate_chain),
        ca_pem=pem(kept.ca_certificates),
        counter=kept.counter,
        control=kept.control_address,
        trust=kept.trust,
    )


class Proxy(sync_pb2_grpc.SyncServicer):
    """Listens at `address`; give it to the host as its control plane."""

    def __init__(self, plane: ControlPlane, identity: Identity) -> None:
        self.address = address()
        self.change: Change = as_it_is
        self.nacks: list[sync_pb2.Nack] = []
        self.acks: list[sync_pb2.Ack] = []
        self.seen: list[sync_pb2.ServerMessage] = []
        self._upstream = grpc.secure_channel(
            target(plane.control),
            identity.credentials(),
            options=[("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)],
        )
        self._pool = ThreadPoolExecutor(8)
        self._server = grpc.server(self._pool)
        sync_pb2_grpc.add_SyncServicer_to_server(self, self._server)
        key, chain = server_certificate(plane)
        credentials = grpc.ssl_server_credentials(
            [(key, chain)], root_certificates=identity.ca_pem, require_client_auth=True
        )
        self._server.add_secure_port(self.address, credentials)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._upstream.close()
        self._server.stop(0).wait(10)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def Stream(  # noqa: N802 - the service's name for it
        self, requests: Iterator[sync_pb2.AgentMessage], context: Any
    ) -> Iterator[sync_pb2.ServerMessage]:
        """Pass on."""

        def listened() -> Iterator[sync_pb2.AgentMessage]:
            for message in requests:
                if message.HasField("nack"):
                    self.nacks.append(message.nack)
                if message.HasField("ack"):
                    self.acks.append(message.ack)
                yield message

        call = sync_pb2_grpc.SyncStub(self._upstream).Stream(listened())
        context.add_callback(call.cancel)
        try:
            for message in call:
                self.seen.append(message)
                yield from self.change(message)
        except grpc.RpcError as error:
            context.abort(error.code(), error.details() or "")


def server_certificate(plane: ControlPlane) -> tuple[bytes, bytes]:
    """A key and chain (PEM) that the control plane's CA signed for 127.0.0.1."""
    with plane.opened() as opened:
        made = opened.server_credentials(["127.0.0.1", "localhost"])
    return made.private_key_pem, made.certificate_chain_pem
