# SPDX-License-Identifier: Apache-2.0
"""Join tokens: one string that lets hosts in, and pins the control plane for them."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from typing import Any, Final

from licplane.errors import ExitCode, PlaneError
from licplane.issuer.authority import Authority
from licplane.service.access import Permission, require
from licplane.service.answers import ChangeResult, Difference, JoinTokenCreated, JoinTokenView
from licplane.service.core import Core
from licplane.service.requests import Change
from licplane.service.results import change_from, change_to
from licplane.service.texts import TOKEN_ID, check_labels, check_pattern, refuse
from licplane.service.values import Actor
from licplane.service.work import Work, perform
from licplane.store.identity_model import JoinToken
from lictoken import base64url

JOIN_PREFIX: Final = "licjoin1."
TTL_MAX_S: Final = 30 * 86_400
USES_MAX: Final = 1_000_000


class Tokens:
    """Creating, listing and ending join tokens."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def create(
        self, actor: Actor, change: Change, labels: Mapping[str, str], uses_max: int, ttl_s: int
    ) -> JoinTokenCreated:
        """See Plane.create_join_token."""
        require(actor, Permission.CHANGE_TOKENS)
        wanted = check_labels(labels)
        if not 1 <= uses_max <= USES_MAX:
            raise refuse(f"The token would let {uses_max} hosts in", f"Choose 1 to {USES_MAX}")
        if not 1 <= ttl_s <= TTL_MAX_S:
            raise refuse(
                f"The token would last {ttl_s} s", f"Choose 1 s to {TTL_MAX_S} s (30 days)"
            )
        authority = self._core.authority()
        request: dict[str, object] = {
            "method": "create_join_token",
            "labels": wanted,
            "uses_max": uses_max,
            "ttl_s": ttl_s,
            "dry_run": change.dry_run,
        }

        def body(work: Work) -> JoinTokenView:
            token_id = secrets.token_hex(8)
            token = JoinToken(
                token_id=token_id,
                secret_hash=hashlib.sha256(self._secret(token_id).encode()).digest(),
                labels=wanted,
                uses_max=uses_max,
                expires_at_unix_ms=work.now_ms + ttl_s * 1000,
                created_by=actor.name,
                created_at_unix_ms=work.now_ms,
            )
            work.transaction.put_join_token(token)
            work.audit(
                "token.create",
                token_id,
                {"labels": wanted, "uses_max": uses_max, "ttl_s": ttl_s},
            )
            return token_view(token)

        view = perform(
            self._core, actor, change, request, body, encode=_token_to, decode=_token_from
        )
        if change.dry_run:
            return JoinTokenCreated(view, "")
        join = {
            "id": view.id,
            "secret": self._secret_again(view.id),
            "public": self._core.settings.public_address,
            "control": self._core.settings.control_address,
            "ca": base64url.encode(authority.der),
        }
        others = [one for one in self._core.authorities().certificates if one != authority.der]
        if others:  # a server may show a certificate of another one by the time it is used
            join["more"] = " ".join(map(base64url.encode, others))
        text = json.dumps(join, sort_keys=True, separators=(",", ":"))
        return JoinTokenCreated(view, JOIN_PREFIX + base64url.encode(text.encode()))

    def list(self, actor: Actor) -> tuple[JoinTokenView, ...]:
        """See Plane.list_join_tokens."""
        require(actor, Permission.READ_TOKENS)
        with self._core.store.reading() as reader:
            return tuple(token_view(one) for one in reader.join_tokens())

    def delete(self, actor: Actor, change: Change, token_id: str) -> ChangeResult:
        """See Plane.delete_join_token."""
        require(actor, Permission.CHANGE_TOKENS)
        check_pattern(token_id, "The token's id", TOKEN_ID, "the id that `token list` shows")
        request: dict[str, object] = {
            "method": "delete_join_token",
            "id": token_id,
            "dry_run": change.dry_run,
        }

        def body(work: Work) -> ChangeResult:
            if not work.transaction.delete_join_token(token_id):
                raise PlaneError(
                    ExitCode.NOT_FOUND,
                    f"There is no join token {token_id}",
                    "`licplane token list` shows all",
                )
            work.audit("token.delete", token_id, {})
            difference = Difference("delete", "token", token_id)
            return ChangeResult(True, change.dry_run, 0, (difference,))

        return perform(
            self._core, actor, change, request, body, encode=change_to, decode=change_from
        )

    def _secret(self, token_id: str) -> str:
        """The secret of a token: from the authority's key, so that no copy of it is kept.

        The same request asked twice gets the same answer, although the database has only a hash.
        """
        return _secret(self._core.authority(), token_id)

    def _secret_again(self, token_id: str) -> str:
        """The secret of a token that may have been made under another authority."""
        with self._core.store.reading() as reader:
            row = reader.join_token(token_id)
        for authority in self._core.authorities().every:
            secret = _secret(authority, token_id)
            if row and row.secret_hash == hashlib.sha256(secret.encode()).digest():
                return secret
        return self._secret(token_id)


def _secret(authority: Authority, token_id: str) -> str:
    private = authority.private_key.private_numbers().private_value
    key = hashlib.sha256(b"licplane-join-v1\0" + private.to_bytes(32, "big")).digest()
    return base64url.encode(hmac.digest(key, token_id.encode(), "sha256"))


def token_view(token: JoinToken) -> JoinTokenView:
    """A token without its secret."""
    return JoinTokenView(
        token.token_id,
        dict(token.labels),
        token.uses,
        token.uses_max,
        token.expires_at_unix_ms,
        token.created_by,
    )


def _token_to(view: JoinTokenView) -> dict[str, object]:
    return {
        "id": view.id,
        "labels": dict(view.labels),
        "uses": view.uses,
        "uses_max": view.uses_max,
        "expires_at_unix_ms": view.expires_at_unix_ms,
        "created_by": view.created_by,
    }


def _token_from(value: Mapping[str, Any]) -> JoinTokenView:
    return JoinTokenView(**value)
