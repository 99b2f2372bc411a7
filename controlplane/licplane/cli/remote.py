# SPDX-License-Identifier: Apache-2.0
"""A running server as a backend: licapi.control.v1.Admin over gRPC, TLS 1.3."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Self, TypeVar, cast

# gRPC has no knob for TLS 1.3 only. An RSA-only suite of 1.2 can never be used with the ECDSA
# certificates that licplane makes, which leaves those of 1.3. Read when grpc is imported.
os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", "ECDHE-RSA-AES128-GCM-SHA256")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it writes to standard error beside our words

import grpc

from licapi.control.v1 import admin_pb2 as pb
from licapi.control.v1 import admin_pb2_grpc
from licplane.cli.credentials import Credentials, read_credentials
from licplane.cli.messages import (
    change_message,
    entry_of,
    host_of,
    result_of,
    shadow_of,
    token_of,
)
from licplane.cli.place import Place
from licplane.errors import ExitCode, PlaneError
from licplane.service.answers import (
    AuditCheck,
    AuditView,
    ChangeResult,
    HostView,
    JoinTokenCreated,
    JoinTokenView,
    Page,
    ShadowUsageView,
)
from licplane.service.requests import Change, Document, PageRequest
from licplane.service.values import HostStatus

CALL_TIMEOUT_S: Final = 60.0
MESSAGE_MAX_BYTES: Final = 4 * 2**20

Request = TypeVar("Request")
Response = TypeVar("Response")

_EXITS: Final[Mapping[grpc.StatusCode, ExitCode]] = {
    grpc.StatusCode.INVALID_ARGUMENT: ExitCode.USAGE,
    grpc.StatusCode.FAILED_PRECONDITION: ExitCode.REFUSED,
    grpc.StatusCode.ALREADY_EXISTS: ExitCode.REFUSED,
    grpc.StatusCode.OUT_OF_RANGE: ExitCode.REFUSED,
    grpc.StatusCode.ABORTED: ExitCode.REFUSED,
    grpc.StatusCode.NOT_FOUND: ExitCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED: ExitCode.PERMISSION,
    grpc.StatusCode.UNAUTHENTICATED: ExitCode.PERMISSION,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ExitCode.BUSY,
    grpc.StatusCode.UNAVAILABLE: ExitCode.BUSY,
    grpc.StatusCode.DEADLINE_EXCEEDED: ExitCode.BUSY,
}
_HINTS: Final[Mapping[grpc.StatusCode, str]] = {
    grpc.StatusCode.UNAUTHENTICATED: "Use a credential that was not revoked and has not ended:"
    " `licplane admin list` on the server's machine shows all",
    grpc.StatusCode.PERMISSION_DENIED: "Use a credential whose role may do it"
    " (docs/reference/roles.md)",
    grpc.StatusCode.UNAVAILABLE: "Check the address, that `licplane serve` runs there, and that"
    " the CA of the credential is the server's; the identity is for --listen, the token for"
    " --public-listen",
    grpc.StatusCode.DEADLINE_EXCEEDED: "Try again: with the same --request-id nothing"
    " is done twice",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "Try again in a few seconds",
    grpc.StatusCode.ABORTED: "Read it again, and decide anew",
    grpc.StatusCode.UNIMPLEMENTED: "The server is older than this command: upgrade it",
}


_UNREACHED: Final = (
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is not of the CA in the credential"),
    ("Hostname Verification", "its certificate is for other names (see `serve --server-name`)"),
    ("hostname", "its certificate is for other names (see `serve --server-name`)"),
    ("Connection refused", "nobody listens there"),
    ("DNS resolution failed", "no such host"),
    ("Tls handshake failed", "TLS 1.3 with this credential was refused"),
)
"""What gRPC's words contain, and what it means."""


class RemoteBackend:
    """Admin of one server. `place` names it and the credential."""

    def __init__(self, place: Place) -> None:
        credentials = read_credentials(place.identity, place.token_file)
        self._address = place.server or ""
        self._metadata = _metadata(credentials)
        self._channel = grpc.secure_channel(
            self._address,
            grpc.ssl_channel_credentials(
                credentials.ca_pem,
                credentials.private_key_pem,
                credentials.certificate_pem,
            ),
            options=[
                ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
                ("grpc.max_send_message_length", MESSAGE_MAX_BYTES),
                ("grpc.enable_http_proxy", 0),
            ],
        )
        self.admin: Final = admin_pb2_grpc.AdminStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self._channel.close()

    def list_hosts(self, labels: Mapping[str, str], page: PageRequest) -> Page[HostView]:
        """Admin.ListHosts."""
        answer = self.call(
            self.admin.ListHosts,
            pb.ListHostsRequest(labels=labels, page_size=page.size, page_token=page.token),
        )
        return Page(tuple(map(host_of, answer.hosts)), answer.next_page_token)

    def get_host(self, host: str) -> HostView:
        """Admin.GetHost."""
        return host_of(self.call(self.admin.GetHost, pb.GetHostRequest(host=host)))

    def update_host(
        self, change: Change, host: str, labels: Mapping[str, str], status: HostStatus | None
    ) -> ChangeResult:
        """Admin.UpdateHost."""
        request = pb.UpdateHostRequest(change=change_message(change), host=host, labels=labels)
        if status is not None:
            request.status = status.value  # type: ignore[assignment] # the same numbers
        return result_of(self.call(self.admin.UpdateHost, request))

    def create_join_token(
        self, change: Change, labels: Mapping[str, str], uses_max: int, ttl_s: int
    ) -> JoinTokenCreated:
        """Admin.CreateJoinToken."""
        answer = self.call(
            self.admin.CreateJoinToken,
            pb.CreateJoinTokenRequest(
                change=change_message(change), labels=labels, uses_max=uses_max, ttl_s=ttl_s
            ),
        )
        return JoinTokenCreated(token_of(answer.token), answer.join)

    def list_join_tokens(self) -> tuple[JoinTokenView, ...]:
        """Admin.ListJoinTokens."""
        answer = self.call(self.admin.ListJoinTokens, pb.ListJoinTokensRequest())
        return tuple(map(token_of, answer.tokens))

    def delete_join_token(self, change: Change, token_id: str) -> ChangeResult:
        """Admin.DeleteJoinToken."""
        request = pb.DeleteJoinTokenRequest(change=change_message(change), id=token_id)
        return result_of(self.call(self.admin.DeleteJoinToken, request))

    def list_objects(self, kind: str, page: PageRequest) -> Page[Document]:
        """Admin.ListObjects."""
        answer = self.call(
            self.admin.ListObjects,
            pb.ListObjectsRequest(kind=kind, page_size=page.size, page_token=page.token),
        )
        found = tuple(
            Document(one.kind, one.name, one.json, one.etag, one.revision)
            for one in answer.documents
        )
        return Page(found, answer.next_page_token, answer.revision)

    def apply(
        self, change: Change, documents: Sequence[Document], *, prune: bool, delete: bool
    ) -> ChangeResult:
        """Admin.Apply."""
        request = pb.ApplyRequest(
            change=change_message(change),
            documents=[
                pb.Document(kind=one.kind, name=one.name, json=one.json, etag=one.etag)
                for one in documents
            ],
            prune=prune,
            delete=delete,
        )
        if request.ByteSize() > MESSAGE_MAX_BYTES:
            raise PlaneError(
                ExitCode.REFUSED,
                f"The documents are {request.ByteSize()} bytes together, more than one request"
                f" may have ({MESSAGE_MAX_BYTES})",
                "Apply them in parts, or on the server's machine with --state or --database",
            )
        return result_of(self.call(self.admin.Apply, request))

    def set_license_state(self, change: Change, license: str, action: str) -> ChangeResult:
        """Admin.SetLicenseState."""
        request = pb.SetLicenseStateRequest(
            change=change_message(change), license=license, action=action
        )
        return result_of(self.call(self.admin.SetLicenseState, request))

    def list_shadow_usage(self, page: PageRequest) -> Page[ShadowUsageView]:
        """Admin.ListShadowUsage."""
        answer = self.call(
            self.admin.ListShadowUsage,
            pb.ListShadowUsageRequest(page_size=page.size, page_token=page.token),
        )
        return Page(tuple(map(shadow_of, answer.usage)), answer.next_page_token)

    def list_audit(self, after_sequence: int, size: int) -> tuple[AuditView, ...]:
        """Admin.ListAudit."""
        answer = self.call(
            self.admin.ListAudit,
            pb.ListAuditRequest(after_sequence=after_sequence, page_size=size),
        )
        return tuple(map(entry_of, answer.entries))

    def verify_audit(self) -> AuditCheck:
        """Admin.VerifyAudit."""
        answer = self.call(self.admin.VerifyAudit, pb.VerifyAuditRequest())
        return AuditCheck(answer.entries, tuple(answer.problems))

    def call(
        self, method: Callable[..., Response], request: object, timeout_s: float = CALL_TIMEOUT_S
    ) -> Response:
        """Ask, and raise what goes wrong as PlaneError."""
        try:
            return method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise _failure(self._address, error) from error


def _metadata(credentials: Credentials) -> tuple[tuple[str, str], ...]:
    if not credentials.bearer:
        return ()
    return (("authorization", f"Bearer {credentials.bearer}"),)


def _failure(address: str, error: grpc.RpcError) -> PlaneError:
    """The error as a local one: the server's words, and what to do."""
    call = cast("grpc.Call", error)  # grpc raises objects that are both
    code = call.code()
    words = (call.details() or code.name.lower()).strip()
    if code is grpc.StatusCode.UNAVAILABLE:
        why = next((said for sign, said in _UNREACHED if sign in words), words)
        return PlaneError(ExitCode.BUSY, f"{address} cannot be reached: {why}", _HINTS[code])
    # A server of ours says what is wrong and what to do, in that order.
    message, _, hint = words.removesuffix(".").partition(". ")
    return PlaneError(
        _EXITS.get(code, ExitCode.INTERNAL),
        message,
        hint or _HINTS.get(code, f"The server answered {code.name}; its log says more"),
    )
