# SPDX-License-Identifier: Apache-2.0
"""What administrators ask the control plane for; the role of who asks is checked each time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from licplane.issuer.issuing import Terms
from licplane.issuer.registry import Issue, Statement
from licplane.issuer.sealedkey import Cost
from licplane.service.admins import Admins
from licplane.service.answers import (
    AdminCreated,
    AdminView,
    AuditCheck,
    AuditView,
    ChangeResult,
    HostView,
    JoinTokenCreated,
    JoinTokenView,
    OfflineAdmission,
    Page,
    ShadowUsageView,
)
from licplane.service.auditing import Auditing
from licplane.service.authorities import AuthorityRotation
from licplane.service.core import Core
from licplane.service.documents import Documents
from licplane.service.foundations import Foundations
from licplane.service.hosts import Hosts
from licplane.service.offline import Offline
from licplane.service.requests import Change, Document, Machine, PageRequest
from licplane.service.telemetry import Telemetry
from licplane.service.tokens import Tokens
from licplane.service.values import Actor, HostStatus, Role
from lictoken.revocation import RevocationAction
from lictoken.trust import TrustedKey


class Administration:
    """The half of Plane that people work with; each method is given who asks."""

    def __init__(
        self, core: Core, offline: Offline, telemetry: Telemetry, cost: Cost | None
    ) -> None:
        self._hosts = Hosts(core)
        self._offline = offline
        self._telemetry = telemetry
        self._tokens = Tokens(core)
        self._documents = Documents(core)
        self._foundations = Foundations(core, cost)
        self._admins = Admins(core)
        self.authorities: Final = AuthorityRotation(core, cost)
        """Listing and changing the certification authorities."""
        self._auditing = Auditing(core)

    # ---------------------------------------------------------------------------- hosts
    def list_hosts(
        self, actor: Actor, labels: Mapping[str, str], page: PageRequest
    ) -> Page[HostView]:
        """Hosts with all of these labels, by host id."""
        return self._hosts.list(actor, labels, page)

    def get_host(self, actor: Actor, host: str) -> HostView:
        """By host_id, or by a hostname that only one host has."""
        return self._hosts.get(actor, host)

    def update_host(
        self,
        actor: Actor,
        change: Change,
        host: str,
        *,
        labels: Mapping[str, str],
        status: HostStatus | None = None,
    ) -> ChangeResult:
        """Set labels (an empty value removes one) or the status of a host."""
        return self._hosts.update(actor, change, host, labels=labels, status=status)

    def admit_offline(
        self,
        actor: Actor,
        change: Change,
        *,
        csr: bytes,
        machine: Machine,
        labels: Mapping[str, str],
        certificate_ttl_s: int,
        lease_ttl_s: int,
        nonce: bytes = b"",
    ) -> OfflineAdmission:
        """Enrol a host with no network: everything it needs, as one file."""
        return self._offline.admit(
            actor,
            change,
            csr=csr,
            machine=machine,
            labels=labels,
            certificate_ttl_s=certificate_ttl_s,
            lease_ttl_s=lease_ttl_s,
            nonce=nonce,
        )

    def shadow_usage(self, actor: Actor, page: PageRequest) -> Page[ShadowUsageView]:
        """Who uses what without a binding, over all hosts, with the binding to write."""
        return self._telemetry.usage(actor, page)

    # ---------------------------------------------------------------------- join tokens
    def create_join_token(
        self,
        actor: Actor,
        change: Change,
        *,
        labels: Mapping[str, str],
        uses_max: int,
        ttl_s: int,
    ) -> JoinTokenCreated:
        """A token with which `uses_max` hosts may enrol."""
        return self._tokens.create(actor, change, labels, uses_max, ttl_s)

    def list_join_tokens(self, actor: Actor) -> tuple[JoinTokenView, ...]:
        """All join tokens that were not deleted, without their secrets."""
        return self._tokens.list(actor)

    def delete_join_token(self, actor: Actor, change: Change, token_id: str) -> ChangeResult:
        """End a join token."""
        return self._tokens.delete(actor, change, token_id)

    # ------------------------------------------------------------------------ documents
    def list_objects(self, actor: Actor, kind: str, page: PageRequest) -> Page[Document]:
        """Documents of one kind (resource, binding, license), or of all with ""."""
        return self._documents.list(actor, kind, page)

    def apply(
        self,
        actor: Actor,
        change: Change,
        documents: Sequence[Document],
        *,
        prune: bool = False,
        delete: bool = False,
    ) -> ChangeResult:
        """Make the catalog hold these documents; all of them or none."""
        return self._documents.apply(actor, change, documents, prune=prune, delete=delete)

    def set_license_state(
        self, actor: Actor, change: Change, license: str, action: str
    ) -> ChangeResult:
        """Revoke, suspend or reinstate a license."""
        return self._documents.set_state(actor, change, license, action)

    def issue_license(
        self,
        actor: Actor,
        change: Change,
        terms: Terms,
        *,
        kid: str | None = None,
        issuer: str | None = None,
        after_revocation: bool = False,
    ) -> Issue:
        """Sign a license and put it into the catalog; see licplane.issuer.issuing.issue."""
        return self._documents.issue(
            actor, change, terms, kid=kid, issuer=issuer, after_revocation=after_revocation
        )

    def renew_license(
        self,
        actor: Actor,
        change: Change,
        jti: str,
        *,
        expires_at_s: int,
        kid: str | None = None,
        issuer: str | None = None,
    ) -> Issue:
        """Issue a license again with a later end and all else as it was."""
        return self._documents.renew(
            actor, change, jti, expires_at_s=expires_at_s, kid=kid, issuer=issuer
        )

    def state_license(
        self,
        actor: Actor,
        change: Change,
        jti: str,
        action: RevocationAction,
        *,
        kid: str | None = None,
        issuer: str | None = None,
    ) -> Statement:
        """Sign a statement about a license and put it into the catalog. The reason for the
        hosts' events is `change.reason`. `set_license_state` is the same for machines."""
        return self._documents.state(actor, change, jti, action, kid=kid, issuer=issuer)

    # ----------------------------------------------------------------------------- keys
    def create_key(
        self, actor: Actor, change: Change, *, issuer: str, passphrase: str | None
    ) -> TrustedKey:
        """Make an issuer's key and trust it. The first one needs no opened keys
        (`Plane(store, NO_KEYS)`); this Plane signs with it from then on."""
        return self._foundations.create_key(actor, change, issuer, passphrase)

    def change_passphrase(
        self, actor: Actor, change: Change, *, old: str, new: str
    ) -> tuple[int, tuple[str, ...]]:
        """Put every key that `old` opens under `new`, all or none; how many, and the ids of
        those that are under a third one and stay so. Processes that opened them go on.

        Raises PlaneError PERMISSION where `old` opens none, REFUSED for a `new` that is too short.
        """
        return self._foundations.change_passphrase(actor, change, old, new)

    def retire_key(
        self,
        actor: Actor,
        change: Change,
        kid: str,
        *,
        resign: bool = False,
        anyway: bool = False,
    ) -> tuple[TrustedKey, bool, int]:
        """Retire a key (kid or its first characters), whether it was not before, and how many
        licenses were signed again by the issuer's newest other key (`resign`).

        Refused while a served host may know no other key that seals, unless `anyway`.
        """
        return self._foundations.retire_key(actor, change, kid, resign=resign, anyway=anyway)

    def ensure_foundations(self, actor: Actor, *, issuer: str, passphrase: str | None) -> bool:
        """Make what `serve` needs and is not there: an issuer's key, and the certification
        authority. Whether anything was made. Start with `Plane(store, NO_KEYS)` where the
        database has no keys at all."""
        return self._foundations.ensure(actor, issuer, passphrase)

    def advance(self, actor: Actor, change: Change, beyond: int) -> int:
        """After an old copy of the database was put back: take the catalog's revision beyond
        what hosts hold, since they never take a lower one; then they get their view anew.
        Gives the revision reached."""
        return self._foundations.advance(actor, change, beyond)

    # ------------------------------------------------------------------- administrators
    def create_admin(
        self, actor: Actor, change: Change, *, name: str, role: Role, means: str, ttl_s: int = 0
    ) -> AdminCreated:
        """A client certificate (`means` "certificate") or a bearer token ("token")."""
        return self._admins.create(actor, change, name=name, role=role, means=means, ttl_s=ttl_s)

    def list_admins(self, actor: Actor) -> tuple[AdminView, ...]:
        """Every means of signing in that was handed out."""
        return self._admins.list(actor)

    def revoke_admin(self, actor: Actor, change: Change, name: str) -> ChangeResult:
        """End every certificate and token of an administrator."""
        return self._admins.revoke(actor, change, name)

    # ---------------------------------------------------------------------------- audit
    def list_audit(self, actor: Actor, after: int, size: int) -> tuple[AuditView, ...]:
        """Entries after a sequence number, oldest first."""
        return self._auditing.list(actor, after, size)

    def verify_audit(self, actor: Actor, head: bytes | None = None) -> AuditCheck:
        """Whether the log is whole; `head` is one exported earlier (`audit_head`)."""
        return self._auditing.verify(actor, head)

    def audit_head(self, actor: Actor) -> bytes:
        """The newest signed head, as a JSON object to keep elsewhere."""
        return self._auditing.head(actor)
