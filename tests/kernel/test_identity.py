# SPDX-License-Identifier: Apache-2.0
"""Who may use what: users and groups, several selectors at once, and which binding decides."""

from __future__ import annotations

import grp
import hashlib
import itertools
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from tests.kernel.harness.cgroups import CgroupTree
from tests.kernel.harness.dial import answer_of, dialer
from tests.kernel.harness.subjects import NO_LICENSE, Rules

pytest_plugins = ["tests.kernel.harness.fixtures"]

NOBODY: Final = 65534
OTHER: Final = 12_345  # no account has it, and none is needed


def as_user(uid: int, gid: int, program: Path, *, groups: str = "--clear-groups") -> list[str]:
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", groups, "--", str(program)]


@pytest.mark.parametrize(
    ("selector", "uid", "gid", "answer"),
    [
        (f"unix:uid:{NOBODY}", NOBODY, OTHER, "OK"),
        (f"unix:uid:{NOBODY}", OTHER, NOBODY, NO_LICENSE),
        (f"unix:gid:{NOBODY}", OTHER, NOBODY, "OK"),
        (f"unix:gid:{NOBODY}", NOBODY, OTHER, NO_LICENSE),
        ("unix:uid:0", 0, OTHER, "OK"),
        ("unix:uid:0", OTHER, 0, NO_LICENSE),
        ("unix:gid:0", OTHER, 0, "OK"),
        ("host", OTHER, OTHER, "OK"),
        ("host", 0, 0, "OK"),
    ],
)
def test_users_and_groups(  # noqa: PLR0917
    selector: str, uid: int, gid: int, answer: str, rules: Rules, dial: Path
) -> None:
    rules.allow(selector)

    assert answer_of(rules.cgroup, as_user(uid, gid, dial), rules.to) == answer


def test_users_and_groups_by_name(rules: Rules, dial: Path) -> None:
    user, group = pwd.getpwuid(NOBODY).pw_name, grp.getgrgid(NOBODY).gr_name

    rules.allow(f"unix:user:{user}")
    by_user = [answer_of(rules.cgroup, as_user(uid, 0, dial), rules.to) for uid in (NOBODY, 0)]
    rules.allow(f"unix:group:{group}")
    by_group = [answer_of(rules.cgroup, as_user(0, gid, dial), rules.to) for gid in (NOBODY, 0)]

    assert by_user == by_group == ["OK", NO_LICENSE]


def test_supplementary_groups_do_not_count(rules: Rules, dial: Path) -> None:
    rules.allow(f"unix:gid:{NOBODY}")
    member = as_user(OTHER, OTHER, dial, groups=f"--groups={NOBODY}")

    assert answer_of(rules.cgroup, member, rules.to) == NO_LICENSE


def test_all_selectors_of_a_binding_hold_together(rules: Rules, dial: Path) -> None:
    digest = hashlib.sha256(dial.read_bytes()).hexdigest()
    with CgroupTree(rules.cgroup, "right") as right, CgroupTree(rules.cgroup, "wrong") as wrong:
        rules.allow(
            f"unix:uid:{NOBODY}",
            f"unix:gid:{OTHER}",
            f"unix:path:{dial}",
            f"unix:sha256:{digest}",
            f"cgroup:path:{rules.path(right.root)}",
        )
        copy = dial.with_name("copy")
        copy.write_bytes(dial.read_bytes())
        copy.chmod(0o755)
        for place, program in ((right.root, dial), (right.root, copy)):
            with dialer(place, as_user(NOBODY, OTHER, program), rules.to) as running:
                if program == dial:
                    running.until("OK")  # its content is measured
                else:
                    assert running.ask() == NO_LICENSE, "another path"

        assert answer_of(right.root, as_user(NOBODY, OTHER, dial), rules.to) == "OK"
        assert answer_of(wrong.root, as_user(NOBODY, OTHER, dial), rules.to) == NO_LICENSE
        assert answer_of(right.root, as_user(0, OTHER, dial), rules.to) == NO_LICENSE
        assert answer_of(right.root, as_user(NOBODY, 0, dial), rules.to) == NO_LICENSE
        with dial.open("ab") as file:
            file.write(b"other content")
        assert answer_of(right.root, as_user(NOBODY, OTHER, dial), rules.to) == NO_LICENSE


LEVELS: Final = ("host", "gid", "uid", "cgroup", "path", "sha256")
"""Selectors from the least specific to the most specific."""

NEIGHBOURS: Final = list(itertools.pairwise(LEVELS))

ENDS: Final[dict[str, Callable[[Rules, str], None]]] = {
    "EKEYREVOKED": lambda rules, jti: rules.agent.revoke(jti) and None,
    "EKEYEXPIRED": lambda _rules, _jti: None,
}


def selector_of(level: str, rules: Rules, dial: Path) -> str:
    return {
        "host": "host",
        "gid": "unix:gid:0",
        "uid": "unix:uid:0",
        "cgroup": f"cgroup:path:{rules.path(rules.cgroup)}",
        "path": f"unix:path:{dial}",
        "sha256": f"unix:sha256:{hashlib.sha256(dial.read_bytes()).hexdigest()}",
    }[level]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("wide", "narrow"), NEIGHBOURS)
def test_the_most_specific_binding_decides_also_when_its_license_ended(
    wide: str, narrow: str, end: str, rules: Rules, dial: Path
) -> None:
    expires = {"expires_in_s": 2.0} if end == "EKEYEXPIRED" else {}
    _, ended = rules.allow_each(
        ((selector_of(wide, rules, dial),), {}),
        ((selector_of(narrow, rules, dial),), expires),
    )
    ENDS[end](rules, ended)

    with dialer(rules.cgroup, dial, rules.to) as running:
        running.until(end)
        assert running.ask() == end, "the wider binding stepped in"


@pytest.mark.parametrize(("wide", "narrow"), NEIGHBOURS)
def test_a_wider_binding_with_an_ended_license_does_not_matter(
    wide: str, narrow: str, rules: Rules, dial: Path
) -> None:
    ended, good = rules.allow_each(
        ((selector_of(wide, rules, dial),), {}),
        ((selector_of(narrow, rules, dial),), {}),
    )
    rules.agent.revoke(ended)

    with dialer(rules.cgroup, dial, rules.to) as running:
        running.until("OK")
        explained = rules.agent.call("explain", pid=running.pid)["resources"]

    assert [row["license"] for row in explained if row["resource"] == "r"] == [good]


def test_a_renewal_beside_the_running_license_takes_over(rules: Rules, dial: Path) -> None:
    first, second = rules.allow_each((("unix:uid:0",), {}), (("unix:uid:0",), {"expires_in_s": 60}))

    rules.agent.revoke(first)
    after_one = answer_of(rules.cgroup, dial, rules.to)
    rules.agent.revoke(second)

    assert after_one == "OK"
    assert answer_of(rules.cgroup, dial, rules.to) == "EKEYREVOKED"


def test_a_change_of_user_counts_from_the_next_use(rules: Rules, dial: Path) -> None:
    rules.allow("unix:uid:0")

    assert answer_of(rules.cgroup, dial, rules.to) == "OK"
    assert answer_of(rules.cgroup, dial, rules.to, uid=NOBODY) == NO_LICENSE


def test_the_selectors_of_the_license_itself_must_hold_too(rules: Rules, dial: Path) -> None:
    rules.allow("unix:uid:0", selectors=(f"unix:path:{dial}",))
    other = dial.with_name("other")
    other.write_bytes(dial.read_bytes())
    other.chmod(0o755)

    assert answer_of(rules.cgroup, dial, rules.to) == "OK"
    assert answer_of(rules.cgroup, other, rules.to) == NO_LICENSE
    assert answer_of(rules.cgroup, dial, rules.to, uid=NOBODY) == NO_LICENSE
