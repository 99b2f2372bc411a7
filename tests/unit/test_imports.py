# SPDX-License-Identifier: Apache-2.0
"""import-linter forbids packages by name; this holds the rest: domain is standard library only."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOMAIN = sorted((ROOT / "agent/licagent/domain").rglob("*.py"))
TOKEN = ROOT / "token/lictoken"
SHARED = ("lictoken.claims", "lictoken.conditions")


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return names


def foreign(names: set[str], *allowed: str) -> set[str]:
    return {
        name
        for name in names
        if name.split(".")[0] not in sys.stdlib_module_names
        and not any(name == prefix or name.startswith(prefix + ".") for prefix in allowed)
    }


def test_domain_is_there() -> None:
    assert DOMAIN, "no file found: the test below would show nothing"


@pytest.mark.parametrize("path", DOMAIN, ids=lambda path: path.name)
def test_domain_imports_only_the_standard_library_and_claims(path: Path) -> None:
    assert foreign(imported(path), "licagent.domain", *SHARED) == set()


@pytest.mark.parametrize("name", SHARED)
def test_what_domain_shares_imports_only_the_standard_library(name: str) -> None:
    assert foreign(imported(TOKEN / f"{name.rpartition('.')[2]}.py")) == set()
