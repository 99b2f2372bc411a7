# SPDX-License-Identifier: Apache-2.0
"""Policy: refused whole with every place named; the last good one stays in force."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.system.harness.scene import COMMAND, HOLDER, STRANGER, Scene, eventually

from licagent.kernel.bpffs import PinFolder


def enforced(scene: Scene) -> bool:
    """The good policy decides: only the holder gets through."""
    return (scene.connect(HOLDER), scene.connect(STRANGER)) == ("ok", "ENOKEY")


BAD = {
    # what is wrong: (text after the good policy, line of it, key, message, suggestion)
    "unknown key": (
        '[[resource]]\nname = "x"\nkind = "network"\ndestination = []\n',
        4,
        "destination",
        "unknown",
        "destinations",
    ),
    "overlapping names": (
        '[[resource]]\nname = "db"\nkind = "service"\nports = ["19"]\n',
        1,
        "name",
        "also the resource",
        "",
    ),
    "impossible CIDR": (
        '[[resource]]\nname = "x"\nkind = "network"\ndestinations = [{ cidr = "10.0.5.7/24" }]\n',
        4,
        "cidr",
        "host bits",
        "10.0.5.0/24",
    ),
    "binding to no license": (
        '[[binding]]\nlicense = "acne"\nselectors = ["host"]\n',
        2,
        "license",
        "acne",
        "acme",
    ),
    "unreachable resource": (
        '[[resource]]\nname = "lost"\nkind = "service"\nmode = "enforce"\nports = ["19"]\n',
        1,
        "",
        "lost",
        "",
    ),
    "not TOML": ("[[resource\n", 1, "", "TOML", ""),
}


@pytest.fixture
def bad(scene: Scene) -> Callable[[str], tuple[Path, int]]:
    def make(what: str) -> tuple[Path, int]:
        good = scene.policy_text("acme")
        return scene.file("test.toml", good + BAD[what][0]), len(good.splitlines())

    return make


def check_named(what: str, problems: list[dict[str, Any]], name: str, offset: int) -> None:
    _text, line, key, message, suggestion = BAD[what]
    wanted = [
        row
        for row in problems
        if row["file"].endswith(name)
        and row["line"] == offset + line
        and key in row["key"]
        and message in row["message"]
        and suggestion in row["suggestion"]
    ]
    assert wanted, problems


@pytest.mark.parametrize("what", BAD)
def test_a_bad_policy_is_refused_whole_and_the_last_good_one_stays(
    scene: Scene, bad: Callable[[str], tuple[Path, int]], what: str
) -> None:
    path, offset = bad(what)
    before = scene.ask("policy", "show")
    installed = (scene.agent.config / "policy.d" / "test.toml").read_bytes()
    for command in (("check",), ("check", "--live"), ("apply",)):
        result = scene.cli("policy", *command, path, "--json")
        assert result.status == 7, result
        check_named(what, result.json["error"]["details"]["problems"], "test.toml", offset)
    words = scene.cli("policy", "apply", path)
    assert words.status == 7
    assert f"test.toml:{offset + BAD[what][1]}" in words.err
    assert BAD[what][4] in words.err
    assert scene.ask("policy", "show") == before
    assert (scene.agent.config / "policy.d" / "test.toml").read_bytes() == installed
    assert scene.cli("status").status == 0
    assert enforced(scene)


def test_all_problems_are_named_at_once(scene: Scene) -> None:
    path = scene.file("all.toml", "\n".join(BAD[what][0] for what in list(BAD)[:4]))
    result = scene.cli("policy", "apply", path, "--json")
    assert len(result.json["error"]["details"]["problems"]) >= 4


def test_good_policies_are_checked_applied_and_shown(scene: Scene) -> None:
    scene.agent.issue("web-license", ["web"])
    text = scene.policy_text("web-license", name="web", port=19)
    path = scene.file("web.toml", text)
    generation = scene.ask("policy", "show")["generation"]
    try:
        checked = scene.ask("policy", "check", "--live", path)
        assert (checked["resources"], checked["bindings"]) == (2, 2)
        assert scene.ask("policy", "show")["generation"] == generation
        applied = scene.ask("policy", "apply", path)
        assert applied["changed"] is True
        assert applied["generation"] == generation + 1
        assert (scene.agent.config / "policy.d" / "web.toml").read_text() == text
        assert scene.connect(STRANGER, port=19) == "ENOKEY"
        shown = scene.ask("policy", "show")
        assert {row["name"] for row in shown["resources"]} == {"db", "web"}
        assert {row["source"].split(":")[0] for row in shown["bindings"]} == {
            "test.toml",
            "web.toml",
        }
        again = scene.ask("policy", "apply", path)
        assert again["changed"] is False
        assert again["generation"] == generation + 1
        assert scene.cli("policy", "check").status == 0
    finally:
        (scene.agent.config / "policy.d" / "web.toml").unlink()
        assert scene.cli("policy", "apply").status == 0
    assert scene.connect(STRANGER, port=19) == "ECONNREFUSED"


def test_two_files_of_one_name_are_not_mixed_up(scene: Scene) -> None:
    first, second = scene.agent.folder / "a", scene.agent.folder / "b"
    for folder in (first, second):
        folder.mkdir()
        (folder / "test.toml").write_text(scene.policy_text("acme"))
    result = scene.cli("policy", "apply", first / "test.toml", second / "test.toml")
    assert result.status == 2
    assert "one name" in result.err
    assert scene.cli("policy", "apply", scene.file("x.conf", "")).status == 2


def test_only_root_changes_policy(scene: Scene) -> None:
    for folder in (scene.agent.folder, scene.agent.config):
        folder.chmod(0o755)
    result = scene.cli_as(STRANGER, "policy", "apply")
    assert result.status == 5
    assert scene.cli_as(STRANGER, "status").status == 5  # not of the group licagent


@pytest.mark.parametrize("reboot", [False, True])
def test_broken_files_do_not_open_the_host_at_the_next_start(
    make_scene: Callable[..., Scene], reboot: bool
) -> None:
    scene = make_scene()
    scene.agent.start()
    scene.ready()
    assert enforced(scene)
    scene.agent.kill()
    if reboot:  # programs, links and tables are gone; only files are left
        PinFolder(scene.agent.bpffs).remove()
        assert scene.connect(STRANGER) == "ok"
    policy = scene.agent.config / "policy.d" / "test.toml"
    policy.write_text(scene.policy_text("acme") + BAD["impossible CIDR"][0])
    scene.agent.start()
    assert enforced(scene)
    result = scene.cli("status", "--json")
    assert result.status == 150
    [reason] = result.json["reasons"]
    assert reason["code"] == "policy-refused"
    assert "test.toml" in reason["message"]
    assert "10.0.5.0/24" in reason["message"]
    assert "last good policy" in reason["hint"]
    assert result.json["policy"]["resources"] == 1
    policy.write_text(scene.policy_text("acme"))
    assert scene.cli("policy", "apply").status == 0
    assert scene.cli("status").status == 0


def test_broken_files_do_not_matter_to_a_running_daemon(
    make_scene: Callable[..., Scene],
) -> None:
    scene = make_scene()
    scene.agent.start()
    scene.ready()
    policy = scene.agent.config / "policy.d" / "test.toml"
    policy.write_bytes(b"\xff\xfe")
    assert scene.agent.process is not None
    scene.agent.process.send_signal(1)
    eventually(lambda: scene.cli("status").status == 150)
    assert enforced(scene)
    result = scene.cli("policy", "apply")
    assert result.status == 7
    assert "test.toml:1: is no UTF-8 text" in result.err
    os.mkfifo(policy.with_name("fifo.toml"))
    assert "not a regular file" in scene.cli("policy", "apply").err
    policy.with_name("fifo.toml").unlink()
    # A license that comes meanwhile and `run` work by the policy in force.
    scene.agent.issue("acme", ["db"])
    assert enforced(scene)
    assert scene.curl(str(COMMAND), "run", "--license", "acme", "--").returncode == 0
