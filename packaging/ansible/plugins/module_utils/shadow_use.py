# SPDX-License-Identifier: Apache-2.0
"""Which shadow usage the policy in force explains: would the same use be allowed today?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Row = dict[str, Any]
KEYS = ("resource", "user", "executable", "unit")
"""What a use is told apart by, and what an acceptance may name."""


def rows_of(events: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Shadow decisions added up by who used what; most used first."""
    rows: dict[tuple[Any, ...], Row] = {}
    for event in events:
        process = event.get("process") or {}
        row: Row = {
            "resource": event.get("resource"),
            "user": process.get("user"),
            "uid": process.get("uid"),
            "gid": process.get("gid"),
            "executable": process.get("executable") or process.get("name"),
            "unit": process.get("unit"),
            "slice": process.get("slice"),
            "container": process.get("container"),
            "cgroup": process.get("cgroup"),
        }
        key = tuple(row.values())
        kept = rows.setdefault(key, {**row, "count": 0, "reason": "", "last_at": ""})
        kept["count"] += int(event.get("count") or 1)
        if str(event.get("at")) >= kept["last_at"]:
            kept["last_at"] = str(event.get("at"))
            kept["reason"] = event.get("reason")
    return sorted(rows.values(), key=lambda row: -int(row["count"]))


def is_licensed(row: Row, policy: Mapping[str, Any], entitled: Mapping[str, set[str]]) -> bool:
    """Whether a binding in force covers the use and its license is valid.

    `entitled` has the resources of each valid license. A use that was still counted after the
    policy came into force is not licensed, whatever the bindings say: something else is missing.
    """
    if row["last_at"] >= str(policy.get("loaded_at")):
        return False
    return any(
        row["resource"] in entitled.get(str(binding["license"]), set())
        and (not binding.get("resources") or row["resource"] in binding["resources"])
        and all(holds(selector, row) for selector in binding["selectors"])
        for binding in policy.get("bindings") or ()
    )


def holds(selector: str, row: Row) -> bool:
    """Whether the selector is sure to hold for the use; what a record cannot show does not."""
    if selector == "host":
        return True
    kind, _, value = selector.partition(":")
    name, _, value = value.partition(":")
    cgroup = str(row["cgroup"] or "")
    if kind == "unix":
        known = {"uid": row["uid"], "user": row["user"], "gid": row["gid"]}
        known["path"] = row["executable"]
        return name in known and known[name] is not None and str(known[name]) == value
    if kind == "systemd":
        return value in cgroup.split("/") or value in (row["unit"], row["slice"])
    if kind == "cgroup":
        return cgroup == value or cgroup.startswith(value.rstrip("/") + "/")
    if kind == "container":
        return bool(row["container"]) and str(row["container"]).startswith(value)
    return False


def is_accepted(row: Row, accepted: Iterable[Mapping[str, Any]]) -> bool:
    """Whether an operator said that this use is to be refused: every key named is the row's."""
    return any(
        all(one[key] is None or one[key] == row[key] for key in KEYS)
        and any(one[key] is not None for key in KEYS)
        for one in accepted
    )
