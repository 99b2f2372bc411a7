# SPDX-License-Identifier: Apache-2.0
"""Shadow usage: who uses what without a binding, how often, and the binding that would allow it."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_ROWS_MAX: Final = 4096


@dataclass(slots=True)
class _Use:
    count: int = 0
    last_at: str = ""
    first_at: str = ""
    executable: str = ""
    reason: str = ""


Key = tuple[str, str, str, str]


class ShadowBook:
    """Adds up shadow decisions by (resource, user, program's name, unit). Bounded: oldest go.

    By name, because a program that has ended meanwhile has no executable to be asked for; what
    one of its runs told of that holds for the row.
    """

    def __init__(self) -> None:
        self._uses: OrderedDict[Key, _Use] = OrderedDict()

    def take(self, record: Mapping[str, Any]) -> None:
        """Count a record of verdict "shadow"; others are passed over."""
        if record.get("verdict") != "shadow":
            return
        process = record.get("process") or {}
        key = (
            str(record.get("resource") or ""),
            str(process.get("user") or process.get("uid") or ""),
            str(process.get("name") or process.get("executable") or ""),
            str(process.get("unit") or ""),
        )
        use = self._uses.setdefault(key, _Use(first_at=str(record.get("at"))))
        use.count += int(record.get("count") or 1)
        use.executable = str(process.get("executable") or use.executable)
        use.reason = str(record.get("reason") or "")
        use.last_at = str(record.get("at"))
        self._uses.move_to_end(key)
        while len(self._uses) > _ROWS_MAX:
            self._uses.popitem(last=False)

    def rows(self) -> list[dict[str, Any]]:
        """Most used first."""
        rows = [
            {
                "resource": resource,
                "user": user or None,
                "executable": use.executable or name or None,
                "unit": unit or None,
                "count": use.count,
                "first_at": use.first_at,
                "last_at": use.last_at,
                "reason": use.reason,
                "suggestion": suggestion(resource, user, use.executable, unit),
            }
            for (resource, user, name, unit), use in self._uses.items()
        ]
        return sorted(rows, key=lambda row: -int(str(row["count"])))


def suggestion(resource: str, user: str, executable: str, unit: str) -> str:
    """A binding that would allow this use, as TOML to complete with a license."""
    selectors = []
    if unit:
        selectors.append(f"systemd:unit:{unit}")
    if executable.startswith("/"):
        selectors.append(f"unix:path:{executable}")
    if user and not unit:
        selectors.append(f"unix:uid:{user}" if user.isdigit() else f"unix:user:{user}")
    # Strings of JSON are strings of TOML; a path may hold quotes.
    listed = ", ".join(map(json.dumps, selectors or ["host"]))
    license_ = json.dumps(f"<a license for {resource}>")
    return f"[[binding]]\nlicense = {license_}\nselectors = [{listed}]"
