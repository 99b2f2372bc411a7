# SPDX-License-Identifier: Apache-2.0
"""Unary calls: parse, find out who asks, run it on a thread, answer or refuse."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError, Message
from sqlalchemy.exc import SQLAlchemyError

from licplane.api.admission import TokenBucket
from licplane.api.peers import Refused, bearer_token, fingerprint, refusal
from licplane.api.site import Site
from licplane.errors import PlaneError
from licplane.service.values import Identity

Handler = Callable[[Identity | None, Any], Message]
"""Serves one request, on a thread. Raises PlaneError, or Refused."""


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a service. `anonymous`: it needs no credential."""

    request: type[Message]
    handler: Handler
    anonymous: bool = False


UNKNOWN_METHOD: Final = "unknown"


class Calls:
    """The unary methods of one listener."""

    def __init__(self, site: Site, *, public: bool) -> None:
        self._site = site
        self._public = public
        self._running = 0
        limits = site.settings.limits
        self._bucket = TokenBucket(
            limits.public_failures_a_second, limits.public_failures_burst, time.monotonic
        )

    def handlers(self, service: str, methods: Mapping[str, Method]) -> grpc.GenericRpcHandler:
        """What a server serves `service` with."""
        return grpc.method_handlers_generic_handler(
            service,
            {
                name: grpc.unary_unary_rpc_method_handler(self._serving(name, method))
                for name, method in methods.items()
            },
        )

    def _serving(self, name: str, method: Method) -> Any:
        async def serve(data: bytes, context: Any) -> bytes:
            began_s = time.monotonic()
            metrics = self._site.metrics
            try:
                answer = await self._answer(method, data, context)
            except Refused as refused:
                metrics.count("licplane_calls_total", method=name, status=refused.status.name)
                metrics.count("licplane_refused_total", why=refused.why)
                await context.abort(refused.status, refused.detail, _retry(self._site, refused))
                raise  # abort() does not come back
            metrics.count("licplane_calls_total", method=name, status="OK")
            metrics.observe("licplane_call_seconds", time.monotonic() - began_s, method=name)
            return answer

        return serve

    async def _answer(self, method: Method, data: bytes, context: Any) -> bytes:
        limits = self._site.settings.limits
        if self._running >= limits.calls_at_once or (self._public and not self._bucket.take()):
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "The server is busy; come back later", "busy"
            )
        if len(data) > limits.message_bytes:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"A message may have {limits.message_bytes} bytes",
                "oversized",
            )
        self._running += 1
        try:
            answer = await self._site.call(self._run, method, data, self._credential(context))
        except PlaneError as error:
            found = refusal(error)
            if found.status is grpc.StatusCode.INTERNAL:
                self._site.fault("call", error)
            raise found from error
        except SQLAlchemyError as error:
            self._site.fault("database", error)
            raise Refused(
                grpc.StatusCode.UNAVAILABLE, "The database does not answer", "database"
            ) from error
        finally:
            self._running -= 1
        if self._public:
            self._bucket.give_back()  # what is limited is guessing; a fleet may join at once
        return answer

    def _credential(self, context: Any) -> str:
        """What the peer shows: a token on the public listener, else a certificate."""
        return bearer_token(context) if self._public else fingerprint(context)

    def _run(self, method: Method, data: bytes, credential: str) -> bytes:
        """On a thread: who it is comes before what is asked."""
        plane = self._site.plane
        identity = None
        if not method.anonymous:
            if not credential:
                raise Refused(
                    grpc.StatusCode.UNAUTHENTICATED, "A credential is needed", "credential"
                )
            authenticate = plane.authenticate_token if self._public else plane.authenticate
            identity = authenticate(credential)
        try:
            request = method.request.FromString(data)
        except DecodeError as error:
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT, "The message is malformed", "malformed"
            ) from error
        return method.handler(identity, request).SerializeToString()


def _retry(site: Site, refused: Refused) -> tuple[tuple[str, str], ...]:
    if refused.status is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return ()
    return (("retry-after-ms", str(site.pace.retry_after_ms())),)
