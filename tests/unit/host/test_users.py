# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import grp
import pwd
from typing import Any

import pytest

from licagent.host.users import UnknownName, Users


def test_both_ways() -> None:
    users = Users()
    assert users.uid("root") == 0
    assert users.gid("root") == 0
    assert users.user_name(0) == "root"
    assert users.group_name(0) == "root"
    nobody = pwd.getpwnam("nobody")
    assert users.uid("nobody") == nobody.pw_uid
    assert users.user_name(nobody.pw_uid) == "nobody"


def test_unknown_ones() -> None:
    users = Users()
    with pytest.raises(UnknownName, match="getent passwd no-such-user"):
        users.uid("no-such-user")
    with pytest.raises(UnknownName, match="getent group no-such-group"):
        users.gid("no-such-group")
    with pytest.raises(UnknownName):
        users.uid("nul\0byte")
    assert users.user_name(3_999_999_999) is None
    assert users.group_name(3_999_999_999) is None
    assert users.user_name(0xFFFFFFFF) is None
    assert users.user_name(-1) is None


def test_an_answer_is_asked_for_once_and_again_after_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    now_s = 0.0

    def getpwnam(name: str) -> Any:
        asked.append(name)
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    users = Users(ttl_s=60, clock=lambda: now_s)
    for _ in range(3):
        with pytest.raises(UnknownName):
            users.uid("late")
    assert asked == ["late"]
    monkeypatch.undo()
    monkeypatch.setattr(pwd, "getpwnam", lambda name: pwd.getpwuid(0))
    now_s = 61.0
    assert users.uid("late") == 0


def test_forget(monkeypatch: pytest.MonkeyPatch) -> None:
    users = Users(clock=lambda: 0.0)
    assert users.group_name(0) == "root"
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group(("renamed", "x", gid, [])))
    assert users.group_name(0) == "root"
    users.forget()
    assert users.group_name(0) == "renamed"


def test_memory_is_bounded() -> None:
    users = Users(clock=lambda: 0.0)
    for uid in range(3_000_000_000, 3_000_005_000):
        users.user_name(uid)
    assert len(users._cache) <= 4096
