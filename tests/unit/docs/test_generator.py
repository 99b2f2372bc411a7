# SPDX-License-Identifier: Apache-2.0
"""Figures in the reference are those of the code."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest

from licagent.domain.config_reader import SETTINGS
from licagent.domain.reason import Reason
from licagent.kernel import layout
from licagent.kernel.hooks import HOOKS

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))


def test_struct_sizes_are_those_that_the_daemon_uses() -> None:
    from generator.structs import struct_sizes

    compared = 0
    for name, size in struct_sizes().items():
        if kind := layout.STRUCTS.get(name):
            assert size == ctypes.sizeof(kind), name
            compared += 1
    assert compared > 10


def test_every_map_is_in_the_table() -> None:
    from generator.structs import map_definitions, sources

    found = map_definitions()
    assert len(found) == sources().count('SEC(".maps")')
    assert all(each.max_entries or each.kind.endswith("storage") for each in found)
    assert len({each.name for each in found}) == len(found)


def test_no_hook_reason_or_setting_is_left_out() -> None:
    reference = DOCS / "reference"
    hooks, reasons, settings = (
        (reference / f"{name}.md").read_text() for name in ("hooks", "reasons", "settings")
    )
    assert all(f"| `{hook.name}` |" in hooks for hook in HOOKS)
    named = [reason for reason in Reason if reason is not Reason.NONE]
    assert all(f"| `{reason.name.lower()}` | {reason.value} |" in reasons for reason in named)
    assert all(f"| `{key}` |" in settings for key in SETTINGS)
    assert sys.path[0] == str(DOCS)  # the imports above were of docs/generator
