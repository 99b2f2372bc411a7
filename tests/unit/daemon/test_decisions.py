# SPDX-License-Identifier: Apache-2.0
"""Events as records: what is remembered between them."""

from __future__ import annotations

from pathlib import Path

from licagent.daemon.decisions import DecisionBook, NameBook
from licagent.host.cgroups import CgroupTree
from licagent.host.users import Users
from licagent.kernel.enforcement_structs import Event


class _Tree(CgroupTree):
    def __init__(self) -> None:
        super().__init__(Path("/nowhere"), Path("/nowhere"))
        self.paths = {7: "/system.slice/web.service"}
        self.asked: list[int] = []

    def path_of(self, cgroup_id: int) -> str | None:
        self.asked.append(cgroup_id)
        return self.paths.get(cgroup_id)


def _event(cgroup: int) -> Event:
    return Event(verdict=1, reason=1, uid=0xFFFFFFFF, gid=0xFFFFFFFF, cgroup=cgroup)


def test_a_cgroup_is_looked_up_once_and_known_when_it_is_gone() -> None:
    tree = _Tree()
    book = DecisionBook(NameBook(lambda _number: None), tree, Users())
    units = [book.record(_event(7))["process"]["unit"]]
    tree.paths.clear()  # the unit has ended
    units.append(book.record(_event(7))["process"]["unit"])
    assert units == ["web.service", "web.service"]
    assert tree.asked == [7]


def test_a_cgroup_that_was_not_found_is_asked_for_again() -> None:
    tree = _Tree()
    book = DecisionBook(NameBook(lambda _number: None), tree, Users())
    assert book.record(_event(8))["process"]["cgroup"] is None
    tree.paths[8] = "/late"
    assert book.record(_event(8))["process"]["cgroup"] == "/late"
