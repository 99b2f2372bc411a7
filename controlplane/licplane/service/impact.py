# SPDX-License-Identifier: Apache-2.0
"""What a change cuts, or would cut: open sockets, as the hosts' last reports have them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from licplane.service.answers import Impact
from licplane.service.reports import Use, kept, names_license
from licplane.store.host_model import Host, HostReport
from licplane.store.reader import Reader

IMPACTS_MAX: Final = 10_000
_PAGE: Final = 500


Ends = Callable[[Use, Host], bool]
"""Whether a use on a host ends."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What loses its sockets: uses of `license` that `ends` tells.

    `ends` is asked for only once a report names the license, with the catalog as it is after the
    change: what it has to look up costs nothing where nobody uses the license.
    """

    license: str  # "" stands for uses without a license
    ends: Callable[[Reader], Ends]


def everything(_reader: Reader) -> Ends:
    """For a license that ends everywhere."""
    return lambda _use, _host: True


def impact_of(reader: Reader, cuts: Sequence[Cut], now_ms: int) -> tuple[Impact, ...]:
    """The sockets that `cuts` concern, over all hosts that reported."""
    if not cuts:
        return ()
    by_license: dict[str, list[Cut]] = {}
    for cut in cuts:
        by_license.setdefault(cut.license, []).append(cut)
    found: list[Impact] = []
    made: dict[int, Ends] = {}

    def ends(use: Use, host: Host) -> bool:
        for cut in by_license.get(use.license, ()):
            if id(cut) not in made:
                made[id(cut)] = cut.ends(reader)
            if made[id(cut)](use, host):
                return True
        return False

    for rows in _pages(reader):
        for row in rows:
            if not any(names_license(row.report, license) for license in by_license):
                continue
            host = reader.host(row.host_id)
            if host is None:
                continue
            for use in kept(row.report).uses:
                if ends(use, host):
                    found.append(
                        Impact(
                            host.host_id,
                            host.hostname,
                            use.license,
                            use.resource,
                            use.selector,
                            use.sockets,
                            max(0, now_ms - row.at_unix_ms),
                        )
                    )
                    if len(found) >= IMPACTS_MAX:
                        return tuple(found)
    return tuple(found)


def host_impact(
    reader: Reader, host: Host, ends: Callable[[Use], bool], now_ms: int
) -> tuple[Impact, ...]:
    """The sockets of one host that a change of it cuts."""
    row = reader.report(host.host_id)
    if row is None:
        return ()
    age_ms = max(0, now_ms - row.at_unix_ms)
    return tuple(
        Impact(
            host.host_id, host.hostname, use.license, use.resource, use.selector,
            use.sockets, age_ms,
        )
        for use in kept(row.report).uses
        if use.license and ends(use)
    )  # fmt: skip


def _pages(reader: Reader) -> Iterator[Iterable[HostReport]]:
    after = ""
    while True:
        rows = reader.reports(after=after, limit=_PAGE)
        if not rows:
            return
        yield rows
        after = rows[-1].host_id
