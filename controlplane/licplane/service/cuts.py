# SPDX-License-Identifier: Apache-2.0
"""Which uses end when a binding or a resource changes, as far as reports can tell."""

from __future__ import annotations

import json
from typing import Any, cast

from licplane.service.impact import Cut, Ends
from licplane.service.reports import Use
from licplane.service.values import Kind
from licplane.store.catalog_model import CatalogObject
from licplane.store.host_model import Host
from licplane.store.reader import Reader


def binding_cut(old: CatalogObject) -> Cut:
    """Uses that only the old form of the binding allowed.

    A report names one selector of a workload, a binding may name several: where the two cannot
    be compared the use is counted, so that a dry run rather says too much.
    """
    before = _table(old)
    license = str(before.get("license", ""))

    def prepare(reader: Reader) -> Ends:
        now = [
            (one, table)
            for one in _bindings(reader, license)
            if (table := _table(one)).get("license") == license
        ]

        def ends(use: Use, host: Host) -> bool:
            if not old.scope.visible_in(host.view) or not _allows(before, use, unsure=True):
                return False
            return not any(
                one.scope.visible_in(host.view) and _allows(table, use, unsure=False)
                for one, table in now
            )

        return ends

    return Cut(license, prepare)


def resource_cut(old: CatalogObject | None, new: CatalogObject) -> list[Cut]:
    """Uses without a license, where a resource begins to be enforced."""
    if _table(new).get("mode") != "enforce":
        return []
    if old is not None and _table(old).get("mode") == "enforce":
        return []

    def ends(use: Use, host: Host) -> bool:
        return use.resource == new.name and new.scope.visible_in(host.view)

    return [Cut("", lambda _reader: ends)]


def _allows(table: dict[str, Any], use: Use, *, unsure: bool) -> bool:
    """Whether a binding allows a use; `unsure` where its selectors cannot be compared."""
    resources = table.get("resources")
    if resources is not None and use.resource not in resources:
        return False
    selectors = [str(one) for one in table.get("selectors", ())]
    if "host" in selectors or use.selector in selectors:
        return True
    family = use.selector.rpartition(":")[0]
    return unsure and not any(one.rpartition(":")[0] == family for one in selectors)


def _bindings(reader: Reader, license: str) -> list[CatalogObject]:
    wanted = json.dumps(license).encode()
    return [one for one in reader.objects(Kind.BINDING) if wanted in one.payload]


def _table(one: CatalogObject) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(one.payload))
