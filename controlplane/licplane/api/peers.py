# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end, and what to say when something is refused."""

from __future__ import annotations

import hashlib
import ssl
from typing import Any, Final

import grpc

from licplane.errors import Conflict, Exhausted, ExitCode, PlaneError, Unauthenticated

_BEARER: Final = "bearer "
_TOKEN_MAX: Final = 512
_STATUS: Final = {
    ExitCode.USAGE: grpc.StatusCode.INVALID_ARGUMENT,
    ExitCode.PERMISSION: grpc.StatusCode.PERMISSION_DENIED,
    ExitCode.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ExitCode.REFUSED: grpc.StatusCode.FAILED_PRECONDITION,
    ExitCode.BUSY: grpc.StatusCode.UNAVAILABLE,
}
_DETAIL_MAX: Final = 2000


class Refused(Exception):
    """A request that is not served."""

    def __init__(self, status: grpc.StatusCode, detail: str, why: str) -> None:
        """`why` is the word under which it is counted."""
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.why = why


def fingerprint(context: Any) -> str:
    """SHA-256 of the client certificate (DER), hexadecimal; "" where there is none.

    gRPC verified its chain and its time; whether it is still served is for the plane to say.
    """
    found = context.auth_context().get("x509_pem_cert")
    if not found:
        return ""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(found[0].decode())).hexdigest()


def bearer_token(context: Any) -> str:
    """The token of `authorization: Bearer TOKEN`; "" where there is none."""
    for name, value in context.invocation_metadata() or ():
        if name == "authorization" and isinstance(value, str) and len(value) <= _TOKEN_MAX:
            head, token = value[: len(_BEARER)], value[len(_BEARER) :]
            return token.strip() if head.lower() == _BEARER else ""
    return ""


def refusal(error: PlaneError) -> Refused:
    """A refusal of the plane as a status. Faults of the server say nothing of themselves."""
    if isinstance(error, Unauthenticated):
        # The service words these alike for what does not exist and what does not hold.
        return Refused(grpc.StatusCode.UNAUTHENTICATED, str(error)[:_DETAIL_MAX], "credential")
    detail = str(error)[:_DETAIL_MAX]
    if isinstance(error, Conflict):
        return Refused(grpc.StatusCode.ABORTED, detail, "conflict")
    if isinstance(error, Exhausted):
        return Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, detail, "exhausted")
    if error.code in _STATUS:
        return Refused(_STATUS[error.code], detail, error.code.name.lower())
    return Refused(grpc.StatusCode.INTERNAL, "The server failed; its log says how", "internal")
