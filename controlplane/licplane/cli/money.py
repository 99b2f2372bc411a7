# SPDX-License-Identifier: Apache-2.0
"""Usage and money as commands ask for them: of the store itself, or of a running server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from licplane.cli.backend import PassphraseSource
from licplane.cli.passphrase import passphrase
from licplane.cli.place import Place, place
from licplane.service.answers import ChangeResult
from licplane.service.requests import Change, Document, PageRequest

Json = dict[str, Any]
FIRST_PAGE: Final = PageRequest(1_000)


class MoneyBackend(Protocol):
    """The part of licapi.control.v1.Admin that is about usage and money."""

    def usage(
        self,
        by: Sequence[str],
        since_ms: int,
        until_ms: int,
        where: Sequence[tuple[str, str]],
        form: str,
    ) -> Json:
        """Admin.QueryUsage."""

    def explain(self, entry: int, page: PageRequest | None) -> Json:
        """Admin.ExplainUsage; with `page` down to single records."""

    def verify(self, host_id: str) -> Json:
        """Admin.VerifyUsage."""

    def export(
        self,
        form: str,
        *,
        since_ms: int = 0,
        until_ms: int = 0,
        plan: str = "",
        period: str = "",
        page: PageRequest = FIRST_PAGE,
    ) -> Json:
        """Admin.ExportUsage."""

    def report(self, since_ms: int, until_ms: int, organization: str, form: str) -> Json:
        """Admin.GetComplianceReport."""

    def retention(self) -> Json:
        """Admin.GetRetention."""

    def set_retention(self, change: Change, days: Mapping[str, int]) -> ChangeResult:
        """Admin.SetRetention."""

    def billing_documents(self, kind: str) -> tuple[Document, ...]:
        """Admin.ListBillingDocuments."""

    def apply_billing(
        self, change: Change, documents: Sequence[Document], *, delete: bool = False
    ) -> ChangeResult:
        """Admin.ApplyBillingDocuments."""

    def periods(self, plan: str) -> Json:
        """Admin.ListBillingPeriods."""

    def bill(self, plan: str, period: str) -> Json:
        """Admin.GetBill."""

    def close(self, change: Change, plan: str, period: str) -> Json:
        """Admin.CloseBillingPeriod."""

    def correct(self, change: Change, period: str) -> Json:
        """Admin.CorrectBillingPeriod."""

    def budgets(self, name: str) -> Json:
        """Admin.GetBudgets."""

    def deliveries(self, state: str, name: str) -> Json:
        """Admin.ListDeliveries."""


@contextmanager
def open_money(where: Place, words: PassphraseSource | None = None) -> Iterator[MoneyBackend]:
    """The backend that `where` names, closed at the end; `words` None: only reading works."""
    where.check()
    if where.server is not None:
        from licplane.cli.money_remote import RemoteMoney
        from licplane.cli.remote import RemoteBackend

        with RemoteBackend(where) as remote:
            yield RemoteMoney(remote)
        return
    from licplane.cli.local import open_plane
    from licplane.cli.money_local import LocalMoney

    with open_plane(where, words) as plane:
        yield LocalMoney(plane)


@contextmanager
def reading_money() -> Iterator[MoneyBackend]:
    """For commands that change nothing."""
    with open_money(place()) as backend:
        yield backend


@contextmanager
def changing_money(passphrase_file: Path | None) -> Iterator[MoneyBackend]:
    """For commands that change something."""
    with open_money(place(), lambda: passphrase(passphrase_file)) as backend:
        yield backend
