# SPDX-License-Identifier: Apache-2.0
"""What commands ask, whether of a state folder or of a running server.

Commands are written once against `Backend`. `local.py` works on the store itself, as the
administrator `local:<user>`; `remote.py` asks a server over gRPC, as whoever the credential says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from licplane.cli.place import Place
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

Item = TypeVar("Item")
PassphraseSource = Callable[[], str | None]

PAGE_SIZE = 500


class Backend(Protocol):
    """licapi.control.v1.Admin, in the words of licplane.service."""

    def list_hosts(self, labels: Mapping[str, str], page: PageRequest) -> Page[HostView]:
        """Hosts that carry all `labels`."""

    def get_host(self, host: str) -> HostView:
        """A host by id, or by a name that only one has."""

    def update_host(
        self,
        change: Change,
        host: str,
        labels: Mapping[str, str],
        status: HostStatus | None,
    ) -> ChangeResult:
        """Set labels (an empty value removes one) and, unless None, the status."""

    def create_join_token(
        self, change: Change, labels: Mapping[str, str], uses_max: int, ttl_s: int
    ) -> JoinTokenCreated:
        """Make a join token."""

    def list_join_tokens(self) -> tuple[JoinTokenView, ...]:
        """All join tokens, without their secrets."""

    def delete_join_token(self, change: Change, token_id: str) -> ChangeResult:
        """Delete a join token."""

    def list_objects(self, kind: str, page: PageRequest) -> Page[Document]:
        """Resources, bindings or licenses."""

    def apply(
        self, change: Change, documents: Sequence[Document], *, prune: bool, delete: bool
    ) -> ChangeResult:
        """Put documents in force, all or none; `prune` and `delete` as in ApplyRequest."""

    def set_license_state(self, change: Change, license: str, action: str) -> ChangeResult:
        """`revoke`, `suspend` or `reinstate` a license."""

    def list_shadow_usage(self, page: PageRequest) -> Page[ShadowUsageView]:
        """Use of resources without a binding, over all hosts."""

    def list_audit(self, after_sequence: int, size: int) -> tuple[AuditView, ...]:
        """Entries of the audit log after a sequence, oldest first."""

    def verify_audit(self) -> AuditCheck:
        """Check the whole audit log."""


@contextmanager
def open_backend(place: Place, passphrase: PassphraseSource | None = None) -> Iterator[Backend]:
    """The backend that `place` names, closed at the end.

    `passphrase` opens the signing key; None for commands that only read.
    """
    place.check()
    if place.server is not None:
        from licplane.cli.remote import RemoteBackend

        with RemoteBackend(place) as remote:
            yield remote
        return
    from licplane.cli.local import LocalBackend, open_plane

    with open_plane(place, passphrase) as plane:
        yield LocalBackend(plane)


def every(fetch: Callable[[PageRequest], Page[Item]]) -> Iterator[Item]:
    """All items of a paged list."""
    token = ""
    while True:
        page = fetch(PageRequest(PAGE_SIZE, token))
        yield from page.items
        token = page.next_token
        if not token:
            return
