# SPDX-License-Identifier: Apache-2.0
"""docs/reference/events.md knows every kind of event that the daemon makes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
DAEMON = ROOT / "agent" / "licagent" / "daemon"
PAGE = (ROOT / "docs" / "reference" / "events.md").read_text(encoding="utf-8")


def kinds(file: Path) -> Iterator[str]:
    """The first argument of every call of `emit`, where it is a text or the module's KIND."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    named = {
        node.target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="emit" | "_emit"), args=[first, *_]):
                match first:
                    case ast.Constant(value=str(kind)):
                        yield kind
                    case ast.Name(id=name) if isinstance(named.get(name), str):
                        yield named[name]


def test_every_kind_of_event_is_in_the_reference() -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("| `kind` |"))
    documented = set(re.findall(r"`([a-z-]+)`", row)) - {"kind"}
    made = {kind for file in DAEMON.rglob("*.py") for kind in kinds(file)}
    assert {"policy", "settings", "break-glass"} <= made
    assert made <= documented, made - documented
    assert documented - made <= {"decision", "missed"}
