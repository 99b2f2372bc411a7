# SPDX-License-Identifier: Apache-2.0
"""What hosts know and a database that was put back has forgotten, taken over on its proof.

Everything was signed by a key of this control plane that counts now. Only what takes something
away is taken: a host that holds back a later statement must not gain by an earlier one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from google.protobuf.message import DecodeError

from licapi.control.v1 import common_pb2
from licplane.errors import PlaneError
from licplane.issuer.keyring import Keyring
from licplane.issuer.registry import OpenRegistry, Statement
from licplane.service.core import Core
from licplane.service.publishing import publish_statement
from licplane.service.streams import host_of
from licplane.service.texts import check_labels
from licplane.service.values import SERVED, Actor, HostStatus, Role
from licplane.service.work import Work, perform_once
from licplane.store.host_model import Host
from lictoken.armour import Label, armour
from lictoken.errors import TokenError
from lictoken.revocation import Revocation, RevocationAction, verify_revocation
from lictoken.sealed import Seal, SealPurpose, unseal
from lictoken.trust import TrustStore

STATEMENTS_MAX: Final = 1_000
"""Of one message."""
_LEAVES: Final = (
    HostStatus.BANNED,
    HostStatus.EVICTED,
    HostStatus.CLONED,
    HostStatus.LEAVING,
    HostStatus.DRAINING,
    HostStatus.ACTIVE,
)
"""What leaves a host the least comes first."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was news."""

    statements: int
    assignment: bool


class Remembered:
    """Takes what a host remembers."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def take(self, host_id: str, tokens: Sequence[bytes], assignment: Seal | None) -> Recovered:
        """Verify it, and put into the database what it lacks."""
        with self._core.store.reading() as reader:
            # A key that was retired may have leaked: it rules nobody any more.
            trust = self._core.own_trust(Keyring(reader).trust())
        found = self._verified(tokens[:STATEMENTS_MAX], trust)
        told = None if assignment is None else self._assignment(host_id, assignment, trust)
        if not self._has_news(host_id, found, told):
            return Recovered(0, assignment=False)

        def body(work: Work) -> Recovered:
            count = sum(self._put(work, host_id, one, token) for one, token in found)
            return Recovered(count, told is not None and self._assign(work, host_id, told))

        actor = Actor(f"host:{host_id}", Role.HOST)
        return perform_once(self._core, actor, body, "an older copy was put back")

    @staticmethod
    def _verified(tokens: Sequence[bytes], trust: TrustStore) -> list[tuple[Revocation, bytes]]:
        found = []
        for token in tokens:
            try:
                statement = verify_revocation(token, trust)
            except TokenError:
                continue  # of a key that this copy does not have, of a retired one, or made up
            if statement.action is not RevocationAction.REINSTATE:
                found.append((statement, token))
        return found

    @staticmethod
    def _assignment(host_id: str, seal: Seal, trust: TrustStore) -> common_pb2.Assignment | None:
        try:
            payload = unseal(SealPurpose.ASSIGNMENT, seal, trust)
            found = common_pb2.Assignment.FromString(payload)
            check_labels(dict(found.labels))
            HostStatus(found.status)
        except (TokenError, DecodeError, PlaneError, ValueError):
            return None
        return found if found.host_id == host_id else None

    def _has_news(
        self,
        host_id: str,
        found: Sequence[tuple[Revocation, bytes]],
        told: common_pb2.Assignment | None,
    ) -> bool:
        """A look without the lock: most hosts tell the same."""
        with self._core.store.reading() as reader:
            host = host_of(reader, host_id)
            if told is not None and told.sequence > host.assignment_sequence:
                return True
            known: dict[str, set[str] | None] = {}
            for one, _ in found:
                if one.license not in known:
                    row = reader.license(one.license)
                    known[one.license] = {each.jti for each in row.statements} if row else None
                jtis = known[one.license]
                if jtis is not None and one.jti not in jtis:
                    return True
        return False

    @staticmethod
    def _put(work: Work, host_id: str, one: Revocation, token: bytes) -> bool:
        registry = OpenRegistry(work.transaction)
        record = registry.find(one.license)
        if record is None or any(each.revocation.jti == one.jti for each in record.statements):
            return False
        statement = Statement(one, armour(token.decode("ascii"), Label.REVOCATION))
        after = replace(
            record,
            generation=max(record.generation, one.generation),
            statements=(*record.statements, statement),
        )
        registry.put(after)
        publish_statement(work.transaction, record.latest, statement)
        work.audit(
            f"license.{one.action.value}",
            one.license,
            {"generation": one.generation, "statement": one.jti, "remembered_by": host_id},
        )
        return True

    @staticmethod
    def _assign(work: Work, host_id: str, told: common_pb2.Assignment) -> bool:
        """Take what narrows of an assignment that is newer than ours."""
        host: Host = host_of(work.transaction, host_id)
        if told.sequence <= host.assignment_sequence:
            return False
        labels = dict(told.labels)
        status = min(host.status, HostStatus(told.status), key=_LEAVES.index)
        if status is HostStatus.ACTIVE and labels != dict(host.labels):
            # What of either is wider is not known: it gets no more until somebody has looked.
            status = HostStatus.DRAINING
        # Ours is newer than what the host holds: it takes it.
        after = replace(host, status=status, assignment_sequence=told.sequence + 1)
        work.transaction.put_host(after)
        if status not in SERVED:
            work.transaction.revoke_certificates(host_id, work.now_ms)
        told_of = {
            "labels": labels,
            "status": HostStatus(told.status).word,
            "sequence": told.sequence,
        }
        work.audit("host.remember", host_id, {"told": told_of, "status": status.word})
        return True
