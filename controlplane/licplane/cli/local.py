# SPDX-License-Identifier: Apache-2.0
"""The store itself as a backend: what the machine's administrator may do without a server."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding

from licplane.cli.backend import PassphraseSource
from licplane.cli.place import Place
from licplane.errors import ExitCode, PlaneError
from licplane.issuer.authority import root_certificate
from licplane.issuer.keyring import open_keys
from licplane.issuer.roots import ROOTS_SETTING, unverified_roots
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
from licplane.service.plane import Plane
from licplane.service.requests import Change, Document, PageRequest, PlaneSettings
from licplane.service.values import Actor, HostStatus, Role
from licplane.store.database import Reader, Store
from licplane.store.folder import StateFolder
from licplane.store.record_model import KeyKind

ADDRESSES_SETTING: Final = "server.addresses"
"""JSON object with `public` and `control`: host:port as hosts reach the listeners."""


def local_actor() -> Actor:
    """Who types commands on this machine. Whoever can write the store may do everything."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    return Actor(f"local:{user}", Role.ADMIN)


class LocalBackend:
    """A Plane, asked in the name of `local_actor`."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.actor = local_actor()

    def list_hosts(self, labels: Mapping[str, str], page: PageRequest) -> Page[HostView]:
        """See Plane."""
        return self.plane.list_hosts(self.actor, labels, page)

    def get_host(self, host: str) -> HostView:
        """See Plane."""
        return self.plane.get_host(self.actor, host)

    def update_host(
        self, change: Change, host: str, labels: Mapping[str, str], status: HostStatus | None
    ) -> ChangeResult:
        """See Plane."""
        return self.plane.update_host(self.actor, change, host, labels=labels, status=status)

    def create_join_token(
        self, change: Change, labels: Mapping[str, str], uses_max: int, ttl_s: int
    ) -> JoinTokenCreated:
        """See Plane. A token must say where to join, which only a server knows."""
        if not self.plane.settings.public_address:
            raise PlaneError(
                ExitCode.NOT_FOUND,
                "No server has said yet where hosts reach it",
                "Start `licplane serve`; with --control-address and --public-address where hosts"
                " reach it by other names",
            )
        return self.plane.create_join_token(
            self.actor, change, labels=labels, uses_max=uses_max, ttl_s=ttl_s
        )

    def list_join_tokens(self) -> tuple[JoinTokenView, ...]:
        """See Plane."""
        return self.plane.list_join_tokens(self.actor)

    def delete_join_token(self, change: Change, token_id: str) -> ChangeResult:
        """See Plane."""
        return self.plane.delete_join_token(self.actor, change, token_id)

    def list_objects(self, kind: str, page: PageRequest) -> Page[Document]:
        """See Plane."""
        return self.plane.list_objects(self.actor, kind, page)

    def apply(
        self, change: Change, documents: Sequence[Document], *, prune: bool, delete: bool
    ) -> ChangeResult:
        """See Plane."""
        return self.plane.apply(self.actor, change, documents, prune=prune, delete=delete)

    def set_license_state(self, change: Change, license: str, action: str) -> ChangeResult:
        """See Plane."""
        return self.plane.set_license_state(self.actor, change, license, action)

    def list_shadow_usage(self, page: PageRequest) -> Page[ShadowUsageView]:
        """See Plane."""
        return self.plane.shadow_usage(self.actor, page)

    def list_audit(self, after_sequence: int, size: int) -> tuple[AuditView, ...]:
        """See Plane."""
        return self.plane.list_audit(self.actor, after_sequence, size)

    def verify_audit(self) -> AuditCheck:
        """See Plane."""
        return self.plane.verify_audit(self.actor)


@contextmanager
def open_store(where: Place, *, create: bool = False) -> Iterator[Store]:
    """The store of a place, closed at the end; with `create` it is made where there is none.

    Raises PlaneError NOT_FOUND where there is none, REFUSED where its schema is another one's.
    """
    with server_store(where, create=create) as store:
        yield store


def server_store(where: Place, *, create: bool = False) -> Store:
    """As `open_store`; the caller closes it, or keeps it until the process ends."""
    if not where.database:
        folder = StateFolder(where.state_dir)
        if create:
            folder.create()
        else:
            folder.require()
        return Store.in_folder(folder.root)
    store = Store.open(where.database)
    try:
        if create and not store.current():
            store.upgrade()
        store.check()
    except BaseException:
        store.close()
        raise
    return store


def plane_settings(reader: Reader, base: PlaneSettings | None = None) -> PlaneSettings:
    """Settings of a Plane outside the server: the addresses that the last `serve` wrote down."""
    found = base or PlaneSettings()
    data = reader.setting(ADDRESSES_SETTING)
    if not data:
        return found
    addresses = json.loads(data)
    return replace(
        found,
        public_address=found.public_address or str(addresses.get("public", "")),
        control_address=found.control_address or str(addresses.get("control", "")),
    )


def remember_addresses(store: Store, *, public: str, control: str) -> None:
    """Write down how hosts reach this control plane, for join tokens made beside the server."""
    data = json.dumps({"control": control, "public": public}, sort_keys=True).encode()
    with store.reading() as reader:
        if reader.setting(ADDRESSES_SETTING) == data:
            return
    with store.transaction() as transaction:
        transaction.put_setting(ADDRESSES_SETTING, data)


@contextmanager
def open_plane(where: Place, passphrase: PassphraseSource | None) -> Iterator[Plane]:
    """The Plane of a place. `passphrase` None: only reading works."""
    with open_store(where) as store:
        with store.reading() as reader:
            settings = plane_settings(reader)
            keys = open_keys(reader, passphrase) if passphrase is not None else None
        yield Plane(store, keys, settings)


def root_pem(store: Store) -> bytes:
    """The certificates of the authorities that are trusted, which needs no passphrase.

    Raises PlaneError NOT_FOUND.
    """
    with store.reading() as reader:
        rows = {one.key_id: one for one in reader.keys(KeyKind.AUTHORITY)}
        data = reader.setting(ROOTS_SETTING)
    if not rows:
        raise PlaneError(
            ExitCode.NOT_FOUND,
            "There is no certification authority yet",
            "Start `licplane serve` once: it makes one",
        )
    names = unverified_roots(data).trusted if data is not None else tuple(rows)[-1:]
    found = [root_certificate(rows[name]) for name in names if name in rows]
    return b"".join(one.public_bytes(Encoding.PEM) for one in found)
