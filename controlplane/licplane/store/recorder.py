# SPDX-License-Identifier: Apache-2.0
"""Writing what comes often and concerns one host: no place in the catalog's order, no audit.

On PostgreSQL these transactions run beside one another and beside those of Store.transaction().
"""

from __future__ import annotations

from collections.abc import Sequence

from licplane.store.model import (
    Certificate,
    HostCounters,
    HostPresence,
    HostReport,
    ShadowRow,
)
from licplane.store.reader import Reader


class Recorder(Reader):
    """A transaction for what hosts send. Made by Store.recording(); kept if its block ends well."""

    def swap_counters(self, expected: HostCounters | None, new: HostCounters) -> bool:
        """Set the host's counter if it is `expected` (None: it has none); else False."""
        raise NotImplementedError

    def put_presence(self, rows: Sequence[HostPresence]) -> None:
        """Note what streams told; for each host the newer `last_seen_unix_ms` wins."""
        raise NotImplementedError

    def put_reports(self, rows: Sequence[HostReport]) -> None:
        """Keep the last report of each host."""
        raise NotImplementedError

    def put_shadow(self, rows: Sequence[ShadowRow]) -> None:
        """Note shadow usage. Counts are totals: a repeated or late report changes nothing."""
        raise NotImplementedError

    def add_certificate(self, certificate: Certificate) -> None:
        """Note a certificate that was issued."""
        raise NotImplementedError

    def spend(self, digest: bytes, until_unix_ms: int) -> bool:
        """True the first time, False afterwards: for signatures that count once.

        Kept until `purge` is called with a later time than `until_unix_ms`.
        """
        raise NotImplementedError

    def purge(self, now_unix_ms: int, *, requests_before_unix_ms: int) -> int:
        """Delete results of old requests, spent digests and certificates that are over.

        Certificates are kept for 30 days after their end. Gives the number of rows deleted.
        """
        raise NotImplementedError
