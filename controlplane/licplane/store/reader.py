# SPDX-License-Identifier: Apache-2.0
"""Reading: one consistent snapshot of the database from the first read to the last.

Lists are sorted by their keys and paged by them: give the last key of a page as `after`. A limit
of 0 is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sqlalchemy import Connection

from licplane.store.model import (
    NO_LABELS,
    AdminIdentity,
    AuditHead,
    AuditRecord,
    CatalogChange,
    CatalogObject,
    Certificate,
    FleetShadow,
    Head,
    Host,
    HostCounters,
    HostPresence,
    HostReport,
    JoinToken,
    KeyKind,
    Kind,
    LicenseRecord,
    RequestResult,
    SealedKey,
    ShadowRow,
)


class Reader:
    """What a transaction sees. Made by Store.reading()."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    # -- catalog

    def head(self) -> Head:
        """Revisions and the catalog's seal."""
        raise NotImplementedError

    def object(self, kind: Kind, name: str) -> CatalogObject | None:
        """A live object, or None."""
        raise NotImplementedError

    def objects(self, kind: Kind, *, after: str = "", limit: int = 0) -> tuple[CatalogObject, ...]:
        """Live objects of a kind by name."""
        raise NotImplementedError

    def objects_named(self, kind: Kind, names: Sequence[str]) -> dict[str, CatalogObject]:
        """Those live objects of a kind that are named, by name."""
        raise NotImplementedError

    def every_object(self) -> Iterator[CatalogObject]:
        """All live objects by kind and name, streamed."""
        raise NotImplementedError

    def changes_since(self, revision: int, *, limit: int = 0) -> tuple[CatalogChange, ...] | None:
        """Changes after `revision`, oldest first; None when they are no longer kept (reset).

        With a limit the page may end within a revision only if that revision alone is longer than
        the limit: then the whole revision is answered.
        """
        raise NotImplementedError

    def catalog_root(self) -> bytes:
        """The digest root over all live objects with their scopes, as stored (32 bytes)."""
        raise NotImplementedError

    def compute_catalog_root(self) -> bytes:
        """The same, computed from the rows alone: differs from the stored one after tampering."""
        raise NotImplementedError

    # -- hosts

    def host(self, host_id: str) -> Host | None:
        """A host by id."""
        raise NotImplementedError

    def hosts(
        self, *, labels: Mapping[str, str] = NO_LABELS, after: str = "", limit: int = 0
    ) -> tuple[Host, ...]:
        """Hosts by id; those that carry all `labels`."""
        raise NotImplementedError

    def hosts_called(self, hostname: str) -> tuple[Host, ...]:
        """Hosts of a hostname (several may have one)."""
        raise NotImplementedError

    def hosts_on_machine(self, machine_id: str) -> tuple[Host, ...]:
        """Hosts of a machine id, whatever their status. The empty id: none."""
        raise NotImplementedError

    def host_of_key(self, key_fingerprint: bytes) -> Host | None:
        """The host with this key."""
        raise NotImplementedError

    def hosts_changed_since(self, fleet_revision: int) -> tuple[Host, ...]:
        """Hosts whose labels or status changed after `fleet_revision`."""
        raise NotImplementedError

    def counters(self, host_id: str) -> HostCounters | None:
        """The host's rotating counter."""
        raise NotImplementedError

    def presence(self, host_ids: Sequence[str]) -> dict[str, HostPresence]:
        """What is known of these hosts' streams, by host id."""
        raise NotImplementedError

    def report(self, host_id: str) -> HostReport | None:
        """The last report of a host."""
        raise NotImplementedError

    def reports(self, *, after: str = "", limit: int = 0) -> tuple[HostReport, ...]:
        """Last reports by host id."""
        raise NotImplementedError

    def shadow(
        self, *, after: tuple[str, str, str, str] | None = None, limit: int = 0
    ) -> tuple[FleetShadow, ...]:
        """Shadow usage of the fleet by (resource, selector, executable, user)."""
        raise NotImplementedError

    def shadow_of(self, host_id: str) -> tuple[ShadowRow, ...]:
        """Shadow usage of a host."""
        raise NotImplementedError

    # -- identities

    def certificate(self, fingerprint: bytes) -> Certificate | None:
        """The certificate with this SHA-256 of its DER."""
        raise NotImplementedError

    def certificates_of(self, host_id: str) -> tuple[Certificate, ...]:
        """A host's certificates, the one that ends last first."""
        raise NotImplementedError

    def join_token(self, token_id: str) -> JoinToken | None:
        """A join token by id."""
        raise NotImplementedError

    def join_tokens(self, *, after: str = "", limit: int = 0) -> tuple[JoinToken, ...]:
        """Join tokens by id."""
        raise NotImplementedError

    def admin(self, fingerprint: bytes) -> AdminIdentity | None:
        """The administrator with this credential, revoked or expired ones too."""
        raise NotImplementedError

    def admins(self) -> tuple[AdminIdentity, ...]:
        """All administrators' credentials by name."""
        raise NotImplementedError

    # -- licenses and keys

    def license(self, jti: str) -> LicenseRecord | None:
        """All that was signed about a license."""
        raise NotImplementedError

    def licenses(self, *, after: str = "", limit: int = 0) -> tuple[LicenseRecord, ...]:
        """Licenses by id."""
        raise NotImplementedError

    def license_ids(self) -> list[str]:
        """The ids of all licenses, sorted."""
        raise NotImplementedError

    def key(self, key_id: str) -> SealedKey | None:
        """A sealed private key."""
        raise NotImplementedError

    def keys(self, kind: KeyKind) -> tuple[SealedKey, ...]:
        """Sealed private keys of a kind, oldest first."""
        raise NotImplementedError

    # -- audit, requests, settings

    def audit(self, *, after_sequence: int = 0, limit: int = 0) -> tuple[AuditRecord, ...]:
        """Audit entries by sequence."""
        raise NotImplementedError

    def audit_heads(self, *, after_sequence: int = 0, limit: int = 0) -> tuple[AuditHead, ...]:
        """Sealed heads by sequence."""
        raise NotImplementedError

    def last_audit_head(self) -> AuditHead | None:
        """The newest sealed head."""
        raise NotImplementedError

    def request_result(self, actor: str, request_id: str) -> RequestResult | None:
        """What this request was answered, if it was made within the time that results are kept."""
        raise NotImplementedError

    def setting(self, name: str) -> bytes | None:
        """A setting's value, or None."""
        raise NotImplementedError
