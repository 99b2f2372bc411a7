# SPDX-License-Identifier: Apache-2.0
"""Reports about what users of a host run fit into a message, whatever they call it."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import pytest

from licagent.control.report import HostReport, HostState, LiveUse, ShadowUsage
from licagent.control.texts import sendable
from licagent.control.wire import report_message

MESSAGE_MAX = 4 * 1024 * 1024
"""The control plane takes no larger one."""


def made(kind: type[Any], **given: Any) -> Any:
    """A value of which only some fields matter."""
    zero = {"str": "", "int": 0, "float": 0.0, "bool": False}
    fields = {
        each.name: zero.get(str(each.type), ())
        for each in dataclasses.fields(kind)
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    }
    return kind(**fields | given)


@pytest.mark.parametrize(
    "name",
    [os.fsdecode(b"/tmp/\xff"), "/tmp/\0", "\x01" * 4096, "\U0001f600" * 1024, "é" * 2048],
)
def test_no_name_keeps_a_report_from_being_sent(name: str) -> None:
    shadow = [made(ShadowUsage, selector=name, executable=name, user=name)] * 5000
    live = [made(LiveUse, selector=name)] * 5000
    state = made(HostState, refused_licenses={name: name})
    report = made(HostReport, state=state, shadow=tuple(shadow), live=tuple(live))
    data = report_message(report, 1).SerializeToString()
    assert len(data) < MESSAGE_MAX


def test_what_was_cut_stays_different() -> None:
    first, second = (sendable("a" * 600 + end, 512) for end in "xy")
    assert first != second
    assert len(first.encode()) <= 512
    assert sendable("/usr/bin/é", 512) == "/usr/bin/é"
    assert sendable(os.fsdecode(b"\xff"), 512) == "\\udcff"
