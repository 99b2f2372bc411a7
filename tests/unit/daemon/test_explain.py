# SPDX-License-Identifier: Apache-2.0
"""What `explain` answers, and what it asks of the kernel thread for it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from licagent.daemon.control.managed import Managed
from licagent.daemon.licensing.files import Held
from licagent.daemon.policy.compiled import Compiled
from licagent.daemon.service import Service
from licagent.domain.compiler import compile_policy
from licagent.domain.decision import PolicyIndex
from licagent.domain.entitlements import Entitlements, judge_entitlements
from licagent.domain.license import Judgement, LicenseState
from licagent.domain.policy import Policy, parse_policy
from licagent.domain.policy_model import Binding
from licagent.host.users import Users
from licagent.kernel.enforcement_structs import Half, SocketRecord, Tag
from licagent.kernel.numbers import TagKind
from lictoken.claims import Condition, Entitlement, License, LicenseScope

T = TypeVar("T")

KERNEL = "the kernel thread"
PID, UID = os.getpid(), os.getuid()
MINE, OTHERS = f"unix:uid:{UID}", "unix:uid:4242"


def license_(jti: str, number: int, resources: Iterable[str], *conditions: Condition) -> License:
    return License(
        *(jti, "iss", "sub", "licagent", number, 1, 0, 0, 10),
        scope=LicenseScope("acme"),
        entitlements=tuple(Entitlement(each, conditions=conditions) for each in resources),
    )


def compiled(
    resources: Sequence[str],
    bindings: Iterable[tuple[str, str, Sequence[str]]],  # license, selector, resources
    licenses: Iterable[License],
    withheld: frozenset[tuple[str, str]] = frozenset(),
) -> Compiled:
    known = {each.jti: each for each in licenses}
    text = "".join(
        f'[[resource]]\nname = "{name}"\nkind = "network"\nmode = "enforce"\n'
        f'destinations = [{{ cidr = "10.{index >> 8}.{index & 255}.0/24" }}]\n'
        for index, name in enumerate(resources)
    )
    for jti, selector, names in bindings:
        text += f'[[binding]]\nlicense = "{jti}"\nselectors = ["{selector}"]\n'
        text += f"resources = {list(names)}\n".replace("'", '"') if names else ""
    local = parse_policy([("test.toml", text)], known_licenses=known)
    numbers: dict[tuple[str, str], int] = {}
    numbering: Any = SimpleNamespace(
        number=lambda space, name: numbers.setdefault((space, name), len(numbers) + 1)
    )
    tables = compile_policy(
        local, known, numbering, lambda _name: None, lenient=True, withheld=withheld
    )
    frame: Any = None
    return Compiled((), local, Managed(), tables, frame)


class Host:
    """An agent without a kernel, its kernel thread, and what ran there."""

    def __init__(self, policy: Compiled | None, licenses: Iterable[License] = ()) -> None:
        self.sockets: list[SocketRecord] = []
        self.states: dict[str, LicenseState] = {}
        self.judged: Counter[int] = Counter()  # by action of the kernel thread
        self.actions = 0
        self.between: Callable[[], None] = lambda: None
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=KERNEL)
        held = {each.jti: Held(each, None, b"") for each in licenses}
        names = {each.license.number: jti for jti, each in held.items()}
        kernel = SimpleNamespace(
            iterators=SimpleNamespace(sockets=lambda: self.sockets),
            identity=SimpleNamespace(process=lambda _pid: None, cgroup=lambda _id: ()),
            licenses=SimpleNamespace(number_at=lambda slot: slot),
        )
        self.agent: Any = SimpleNamespace(
            kernel=kernel,
            tree=SimpleNamespace(of_process=lambda _pid: "/", id_of=lambda _path: 1),
            users=Users(),
            policy=SimpleNamespace(compiled=policy),
            licensing=SimpleNamespace(
                held=held, judge=self._judge, entitlements=self._entitlements
            ),
            state_of=lambda license_: self._judge(license_).state,
            records=SimpleNamespace(jti_of=names.get),
            names=SimpleNamespace(resource=lambda number: f"number {number}"),
            config=SimpleNamespace(mode="enforce", policy_dir=Path("/etc/licagent/policy.d")),
            glass=SimpleNamespace(opening=None),
        )

    def _judge(self, license_: License) -> Judgement:
        assert threading.current_thread().name.startswith(KERNEL)
        self.judged[self.actions] += 1
        state = self.states.get(license_.jti, LicenseState.VALID)
        return Judgement(state, f"{license_.jti} is {state.value}", "renew it")

    def _entitlements(self, license_: License) -> Entitlements:
        return judge_entitlements(license_, {}, {}, 5)

    async def on_kernel(self, action: Callable[[], T]) -> T:
        def act() -> T:
            self.actions += 1
            return action()

        found = await asyncio.get_running_loop().run_in_executor(self.thread, act)
        self.between()
        return found

    def explain(self, pid: int | None = PID, socket: str | None = None) -> dict[str, Any]:
        async def ask() -> Any:
            nothing: Any = None
            service = Service(self.agent, self.on_kernel, nothing, asyncio.Event(), nothing)
            peer: Any = None
            return await service._explain({"pid": pid, "socket": socket}, peer)

        return dict(asyncio.run(ask()))

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["resource"]: row for row in self.explain()["resources"]}


@pytest.fixture
def host() -> Iterator[Callable[..., Host]]:
    made: list[Host] = []

    def make(policy: Compiled | None, licenses: Iterable[License] = ()) -> Host:
        made.append(Host(policy, licenses))
        return made[-1]

    yield make
    for each in made:
        each.thread.shutdown()


def tagged(cookie: int, resource: int = 1, number: int = 1) -> SocketRecord:
    half = Half(kind=TagKind.LICENSED, slot=number, resource=resource)
    tag = Tag(network=half, uid=UID, gid=0, pid=PID, cgroup=1)
    return SocketRecord(tag=tag, cookie=cookie, holder_pid=PID, tagged=1, protocol=6)


NAMES = [f"r{number}" for number in range(300)]
ALL = license_("all", 1, NAMES)


# --- what it costs


def test_rules_are_looked_up_in_one_index_and_not_on_the_kernel_thread(
    host: Callable[..., Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    make, ask = PolicyIndex.__init__, PolicyIndex.rule_of

    def noted_make(self: PolicyIndex, *given: Any) -> None:
        made[threading.current_thread().name] += 1
        make(self, *given)

    def noted_ask(self: PolicyIndex, *given: Any) -> Any:
        asked[threading.current_thread().name] += 1
        return ask(self, *given)

    monkeypatch.setattr(PolicyIndex, "__init__", noted_make)
    monkeypatch.setattr(PolicyIndex, "rule_of", noted_ask)
    one = host(compiled(NAMES, [("all", MINE, ())], [ALL]), [ALL])
    one.sockets = [tagged(cookie) for cookie in range(500)]
    for _again in range(2):
        found = one.explain()
        assert {each["binding"] for each in found["sockets"]} == {"all/1"}
        assert {each["verdict"] for each in found["resources"]} == {"allow"}
    assert made.total() == 1
    assert asked.total() == 2 * (500 + 300)
    assert not [name for name in (*made, *asked) if name.startswith(KERNEL)]


def test_bindings_are_gone_through_once_and_not_on_the_kernel_thread(
    host: Callable[..., Host],
) -> None:
    rounds: Counter[str] = Counter()

    class Noted(tuple[Binding, ...]):
        __slots__ = ()

        def __iter__(self) -> Iterator[Binding]:
            rounds[threading.current_thread().name] += 1
            return super().__iter__()

    policy = compiled(NAMES, [("all", OTHERS, ())], [ALL])
    noted = Noted(policy.policy.bindings)
    policy.__dict__["policy"] = Policy(policy.policy.resources, noted)
    found = host(policy, [ALL]).explain()["resources"]
    assert len(found) == 300
    assert {each["reason"] for each in found} == {"no_binding"}
    assert rounds.total() <= 2
    assert not [name for name in rounds if name.startswith(KERNEL)]


def test_others_have_the_kernel_thread_between_judgements(host: Callable[..., Host]) -> None:
    licenses = [license_(f"l{number}", number + 1, [NAMES[number]]) for number in range(250)]
    policy = compiled(NAMES, [(each.jti, MINE, ()) for each in licenses], licenses)
    one = host(policy, licenses)
    assert sum(row["verdict"] == "allow" for row in one.rows().values()) == 250
    assert one.judged.total() == 250
    assert max(one.judged.values()) <= 100


def test_no_more_than_a_thousand_sockets_are_told(host: Callable[..., Host]) -> None:
    one = host(None)
    one.sockets = [tagged(cookie) for cookie in range(1234)]
    found = one.explain()
    assert [each["cookie"] for each in found["sockets"]] == list(range(1000))
    assert found["sockets_left_out"] == 234
    one.sockets = one.sockets[:1000]
    found = one.explain()
    assert (len(found["sockets"]), found["sockets_left_out"]) == (1000, 0)
    found = one.explain(None, "999")
    assert ([each["cookie"] for each in found["sockets"]], found["resources"]) == ([999], [])


# --- what it says


def test_the_first_ten_bindings_for_a_resource_are_named_in_their_order(
    host: Callable[..., Host],
) -> None:
    narrow, wide, gone = (
        license_("narrow", 1, ["db"]),
        license_("wide", 2, ["db", "web", "log"]),
        license_("gone", 3, ["db", "web"]),
    )
    bindings = [
        ("gone", "unix:uid:1", ()),
        ("narrow", "unix:uid:2", ()),
        ("wide", "unix:uid:3", ["web"]),
        *(("wide", f"unix:uid:{uid}", ()) for uid in range(4, 24)),
    ]
    policy = compiled(["db", "web", "log", "none"], bindings, [narrow, wide, gone])
    rows = host(policy, [narrow, wide]).rows()

    def uids(resource: str) -> list[int]:
        return [int(each.rpartition(":")[2]) for each in rows[resource]["missing"]]

    assert uids("db") == [2, *range(4, 13)]
    assert uids("web") == [3, *range(4, 13)]
    assert uids("log") == [*range(4, 14)]
    assert rows["none"]["missing"] == ["no binding reaches none for anybody"]
    assert {(row["verdict"], row["reason"]) for row in rows.values()} == {("deny", "no_binding")}
    assert rows["db"]["missing"][0] == "binding narrow/1 asks for unix:uid:2"
    assert len(rows["db"]["how"]) == 2


@pytest.mark.parametrize(
    ("state", "reason"), [(LicenseState.EXPIRED, "expired"), (LicenseState.CONDITION, "condition")]
)
def test_an_ended_license_says_why_and_break_glass_says_nothing(
    host: Callable[..., Host], state: LicenseState, reason: str
) -> None:
    acme = license_("acme", 1, ["db"])
    one = host(compiled(["db"], [("acme", MINE, ())], [acme]), [acme])
    one.states["acme"] = state
    row = one.rows()["db"]
    assert (row["verdict"], row["reason"], row["license"]) == ("deny", reason, "acme")
    assert (row["missing"], row["how"]) == ([f"acme is {state.value}"], ["renew it"])
    one.agent.config.mode = "observe"
    row = one.rows()["db"]
    assert (row["verdict"], row["reason"], row["errno"]) == ("shadow", reason, None)
    one.agent.config.mode, one.agent.glass.opening = "enforce", object()
    row = one.rows()["db"]
    assert (row["verdict"], row["reason"], row["license"]) == ("allow", "break_glass", "acme")
    assert (row["missing"], row["how"]) == ([], [])


def test_what_conditions_have_taken_of_a_license_is_named(host: Callable[..., Host]) -> None:
    acme = License(
        *("acme", "iss", "sub", "licagent", 1, 1, 0, 0, 10),
        scope=LicenseScope("acme"),
        entitlements=(
            Entitlement("db", conditions=(Condition("label:role", ("primary",)),)),
            Entitlement("web"),
        ),
    )
    policy = compiled(
        ["db", "web"], [("acme", MINE, ())], [acme], withheld=frozenset({("acme", "db")})
    )
    rows = host(policy, [acme]).rows()
    assert rows["web"]["verdict"] == "allow"
    assert (rows["db"]["reason"], rows["db"]["license"]) == ("condition", None)
    assert rows["db"]["missing"][0].startswith("license acme: ")
    assert "role" in rows["db"]["missing"][0]
    assert len(rows["db"]["how"]) == len(rows["db"]["missing"])


def test_a_license_that_goes_meanwhile_is_gone(host: Callable[..., Host]) -> None:
    acme, other = license_("acme", 1, ["db"]), license_("other", 2, ["db"])
    bindings = [("acme", MINE, ()), ("other", OTHERS, ())]
    one = host(compiled(["db"], bindings, [acme, other]), [acme, other])

    def go() -> None:
        one.agent.licensing.held = {}

    one.between = go
    row = one.rows()["db"]
    assert (row["verdict"], row["reason"], row["license"]) == ("deny", "no_binding", None)
    assert f"binding other/1 asks for {OTHERS}" in row["missing"]
