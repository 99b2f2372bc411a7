# SPDX-License-Identifier: Apache-2.0
"""What a control plane says becomes what the kernel does: real connections, real tables."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernel.harness import programs
from tests.kernel.harness.catalogs import ManagedHost, binding, managed_host, resource
from tests.kernel.harness.dial import Destination, Dialer, dialer

from licagent.control.interface import NoticeCode
from licagent.daemon.control import status as control_status
from licagent.domain.catalog import Kind, NackReason, Refused
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.libbpf import BpfError
from licagent.kernel.maps import Map
from lictoken.claims import LicenseScope

pytest_plugins = ["tests.kernel.harness.fixtures"]

OPEN: Final = "OK"
NO_LICENSE: Final = "ENOKEY"
EXPIRED: Final = "EKEYEXPIRED"
REVOKED: Final = "EKEYREVOKED"
REJECTED: Final = "EKEYREJECTED"

_NUMBERS: Final = itertools.count(1)


@pytest.fixture(scope="module")
def shared_host() -> Iterator[ManagedHost]:
    with managed_host() as made:
        made.push(made.trust())
        yield made


@pytest.fixture
def host(shared_host: ManagedHost) -> ManagedHost:
    """A host that knows its issuer and nothing else."""
    keep = {(Kind.TRUST, "trust")}
    gone = tuple(key for key in shared_host.model if key not in keep)
    shared_host.push(remove=gone)
    shared_host.assign()
    return shared_host


@pytest.fixture
def to() -> Destination:
    return Destination()


@pytest.fixture
def who(host: ManagedHost, dial: Path, to: Destination) -> Iterator[Dialer]:
    """A program in a cgroup that bindings of these tests name."""
    host.agent.tree.create("/bound")
    with dialer(host.agent.tree.directory("/bound"), dial, to) as running:
        yield running


def new_jti() -> str:
    return f"managed-{next(_NUMBERS)}"


def at(to: Destination, mode: str = "enforce") -> tuple[Kind, str, bytes]:
    return resource("r", f"{to.address}/32", to.port, mode)


BOUND: Final = "cgroup:path:/bound"


def test_a_resource_closes_and_a_license_with_a_lease_opens(
    host: ManagedHost, who: Dialer, to: Destination
) -> None:
    jti = new_jti()
    assert who.ask() == OPEN
    host.push(at(to))
    assert who.ask() == NO_LICENSE
    host.push(host.license(jti, ["r"]), binding("b", jti, BOUND))
    assert who.ask() == EXPIRED  # no lease yet
    host.lease(jti)
    assert who.ask() == OPEN
    host.lease()
    assert who.ask() == EXPIRED


def test_a_lease_ends_in_the_kernel_and_says_so(
    host: ManagedHost, who: Dialer, to: Destination
) -> None:
    jti = new_jti()
    host.push(at(to), host.license(jti, ["r"]), binding("b", jti, BOUND))
    host.lease(jti, lasts_ns=4_000_000_000)
    assert who.ask() == OPEN
    who.until(EXPIRED)  # nobody told the kernel
    host.agent.reader.consume()  # type: ignore[union-attr]
    assert host.records[-1]["reason"] == "lease_lost"


def test_without_leases_a_license_that_fails_open_goes_on_until_it_is_refused_one(
    host: ManagedHost, who: Dialer, to: Destination
) -> None:
    jti = new_jti()
    host.push(at(to), host.license(jti, ["r"], failure_mode="open"), binding("b", jti, BOUND))
    assert who.ask() == OPEN
    host.lease()  # the control plane was asked, and did not name it
    assert who.ask() == EXPIRED
    host.lease(jti, lasts_ns=1)
    assert who.ask() == OPEN  # named, and over: the link was cut since
    host.agent.membership.tell(NoticeCode.EVICTED, "sold")
    assert who.ask() == EXPIRED  # no lease's end would ever have ended it
    host.assign()  # it was taken in again
    assert who.ask() == OPEN


def test_a_revocation_cuts_the_connection_and_another_license_goes_on(
    host: ManagedHost, dial: Path
) -> None:
    lost, kept = new_jti(), new_jti()
    with Server() as one, Server() as other:
        host.push(
            resource("one", "127.0.0.1/32", one.port),
            resource("other", "127.0.0.1/32", other.port),
            host.license(lost, ["one"]),
            host.license(kept, ["other"]),
            binding("lost", lost, "host"),
            binding("kept", kept, "host"),
        )
        host.lease(lost, kept)
        host.agent.tree.create("/calls")
        folder = host.agent.tree.directory("/calls")
        with Caller(folder, one.port) as first, Caller(folder, other.port) as second:
            assert first.is_alive()
            assert second.is_alive()
            host.records.clear()
            host.agent.control.revoke([host.statement(lost)])
            first.wait_dead()
            assert second.is_alive()
        [record] = [each for each in host.records if each["kind"] == "license"]
        assert record["license"] == lost
        assert record["by"] == "control plane"
        assert record["sockets_cut"] >= 1
        with Caller(folder, one.port) as again:
            assert again.refused() == REVOKED
        # The same again changes nothing and says nothing.
        host.records.clear()
        host.agent.control.revoke([host.statement(kept, "suspend")])
        host.agent.control.revoke([])
        assert [each["license"] for each in host.records if each["kind"] == "license"] == [kept]


def test_a_statement_nobody_signed_is_refused_and_the_others_count(
    host: ManagedHost, who: Dialer, to: Destination
) -> None:
    jti = new_jti()
    host.push(at(to), host.license(jti, ["r"]), binding("b", jti, BOUND))
    host.lease(jti)
    assert who.ask() == OPEN
    with pytest.raises(Refused) as caught:
        host.agent.control.revoke([b"eyJ.bad.bad", host.statement(jti)])
    assert caught.value.reason is NackReason.SIGNATURE
    assert who.ask() == REVOKED


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda: (Kind.BINDING, "b2", b'{"lisense":"x"}'), "lisense"),
        (lambda: (Kind.RESOURCE, "r2", b"[]"), "resource r2"),
        (lambda: binding("b2", "x", "unix:user:nobody-has-this-name"), ""),
    ],
)
def test_what_does_not_compile_is_refused_and_what_was_in_force_stays(
    host: ManagedHost, who: Dialer, to: Destination, bad: object, words: str
) -> None:
    jti = new_jti()
    host.push(at(to), host.license(jti, ["r"]), binding("b", jti, BOUND))
    host.lease(jti)
    before = host.kernel_tables()
    generation = host.agent.kernel.control.generation
    kind, name, payload = bad()  # type: ignore[operator]
    if name == "b2" and not words:
        payload = payload.replace(b'"x"', f'"{jti}"'.encode())
        words = "nobody-has-this-name"
    with pytest.raises(Refused) as caught:
        host.push((kind, name, payload), resource("late", "10.1.1.0/24", 80))
    assert caught.value.reason is NackReason.POLICY
    assert words in caught.value.detail
    assert host.kernel_tables() == before
    assert host.agent.kernel.control.generation == generation
    assert who.ask() == OPEN
    host.push(resource("late", "10.1.1.0/24", 80))  # without the bad one it is taken


def test_a_name_of_a_local_file_is_refused_and_both_are_named(
    host: ManagedHost, to: Destination
) -> None:
    folder = host.under_test.config / "policy.d"
    (folder / "own.toml").write_text(Destination().resource("mine", mode="observe"))
    try:
        host.agent.policy.load()
        assert host.agent.policy.problem == ""
        with pytest.raises(Refused) as caught:
            host.push(resource("mine", f"{to.address}/32", to.port))
        assert caught.value.reason is NackReason.POLICY
        assert "own.toml" in caught.value.detail
        assert "control plane, resource mine" in caught.value.detail
        # And the reverse: a file that takes a name of the control plane's is refused here.
        host.push(resource("theirs", f"{to.address}/32", to.port))
        (folder / "own.toml").write_text(Destination().resource("theirs", mode="observe"))
        host.agent.policy.load()
        assert "theirs" in host.agent.policy.problem
    finally:
        (folder / "own.toml").unlink()
        host.agent.policy.load()
    assert host.agent.policy.problem == ""


def test_what_the_kernel_cannot_hold_is_refused_with_everything_put_back(
    host: ManagedHost, who: Dialer, to: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    jti = new_jti()
    host.push(at(to), host.license(jti, ["r"]), binding("b", jti, BOUND))
    host.lease(jti)
    before = host.kernel_tables()

    def full(*_arguments: object, **_options: object) -> int:
        raise BpfError(7, "write to rules")

    with monkeypatch.context() as patch:
        patch.setattr(host.agent.kernel.tables, "switch", full)
        patch.setattr(host.agent.kernel.tables, "amend", full, raising=False)
        with pytest.raises(Refused) as caught:
            host.push(
                host.license(jti, ["elsewhere"]),
                resource("elsewhere", "10.9.9.0/24", 80),
                remove=((Kind.BINDING, "b"),),
            )
    assert caught.value.reason is NackReason.KERNEL
    assert host.kernel_tables() == before
    assert [each.resource for each in host.agent.licenses()[jti].entitlements] == ["r"]
    assert who.ask() == OPEN


def test_fleet_objects_that_mean_nothing_here_are_no_mistake(
    host: ManagedHost, who: Dialer, to: Destination
) -> None:
    jti = new_jti()
    host.push(
        at(to),
        host.license(jti, ["r", "of-another-host"]),
        binding("b", jti, BOUND),
        binding("not-for-this-host", "license-that-is-not-visible-here", BOUND),
    )
    host.lease(jti)
    assert who.ask() == OPEN


def test_capacity_comes_at_once_and_goes_at_once(
    host: ManagedHost, who: Dialer, to: Destination
) -> None:
    jti = new_jti()
    host.push(at(to), host.license(jti, ["r"]))
    host.lease(jti)
    assert who.ask() == NO_LICENSE
    host.push(binding("b", jti, BOUND))
    assert who.ask() == OPEN
    host.push(binding("b", jti, "cgroup:path:/elsewhere"))
    assert who.ask() == NO_LICENSE
    host.push(binding("b", jti, "cgroup:path:/bound"), binding("c", jti, "unix:uid:4711"))
    assert who.ask() == OPEN
    host.push(remove=((Kind.LICENSE, jti),))
    assert who.ask() == NO_LICENSE
    assert ("resource", "r") not in host.model
    host.push(remove=((Kind.RESOURCE, "r"),))
    assert who.ask() == OPEN


def test_labels_of_the_assignment_count_and_replace_those_of_the_host(
    host: ManagedHost, who: Dialer, to: Destination
) -> None:
    jti = new_jti()
    scope = LicenseScope(org="tests", environments=("production",))
    host.push(at(to), host.license(jti, ["r"], scope=scope), binding("b", jti, BOUND))
    host.lease(jti)
    assert who.ask() == REJECTED
    host.records.clear()
    host.assign(environment="production")
    assert who.ask() == OPEN
    assert [
        (each["old"], each["new"]) for each in host.records if each["kind"] == "assignment"
    ] == [({}, {"environment": "production"})]
    host.assign(environment="staging")
    assert who.ask() == REJECTED


def test_with_its_catalog_lost_a_host_goes_on_protecting_what_it_protected(dial: Path) -> None:
    to, jti = Destination(), new_jti()
    with managed_host() as host:
        host.push(host.trust(), at(to), host.license(jti, ["r"]), binding("b", jti, BOUND))
        host.lease(jti)
        host.agent.tree.create("/bound")
        bound = host.agent.tree.directory("/bound")
        with dialer(bound, dial, to) as who:
            assert who.ask() == OPEN
            host.restart(lost="the disk")
            assert who.ask() == NO_LICENSE
        [reason] = control_status.reasons(host.agent)
        assert reason["code"] == "control-lost"
        assert "the disk" in reason["message"]


def test_the_control_planes_own_address_passes_whatever_the_policy_says() -> None:
    with managed_host() as host, Server() as server:
        folder = host.agent.tree.root
        host.push(host.trust(), resource("r", "127.0.0.0/8", server.port))
        with Caller(folder, server.port) as caller:
            assert caller.refused() == NO_LICENSE
        assert host.agent.link.reach.resolve([f"localhost:{server.port}"])
        host.agent.link.open_addresses()
        with Caller(folder, server.port) as caller:
            assert caller.is_alive()
        # Kept for a boot at which no name resolves.
        host.restart()
        host.push(resource("s", "127.0.0.0/8", server.port), remove=((Kind.RESOURCE, "r"),))
        with Caller(folder, server.port) as caller:
            assert caller.is_alive()
        # Another one's address passes no more.
        assert host.agent.link.reach.resolve(["127.0.0.9:1"])
        host.agent.link.open_addresses()
        with Caller(folder, server.port) as caller:
            assert caller.refused() == NO_LICENSE


def test_rules_changed_in_place_cut_who_lost_them_and_nobody_else(host: ManagedHost) -> None:
    one, other = new_jti(), new_jti()
    for name in ("/calls", "/others"):
        host.agent.tree.create(name)
    calls, others = (host.agent.tree.directory(name) for name in ("/calls", "/others"))
    host.agent.keeper.book_rules_min = 0
    try:
        with Server() as server:
            host.push(
                resource("one", "127.0.0.1/32", server.port),
                host.license(one, ["one"]),
                host.license(other, ["one"]),
                binding("calls", one, "cgroup:path:/calls"),
                binding("others", one, "cgroup:path:/others"),
                binding("of-all-shapes", one, "cgroup:path:/nowhere", "unix:uid:0"),
            )
            host.lease(one, other)
            generation = host.agent.kernel.control.generation
            with Caller(calls, server.port) as lost, Caller(others, server.port) as kept:
                assert lost.is_alive()
                host.push(remove=((Kind.BINDING, "calls"),))
                lost.wait_dead()
                assert kept.is_alive()
                with Caller(calls, server.port) as again:
                    assert again.refused() == NO_LICENSE
                # Another license takes the binding over, and with it the open connection.
                host.push(binding("others", other, "cgroup:path:/others"))
                assert kept.is_alive()
                host.agent.control.revoke([host.statement(one)])
                assert kept.is_alive()
                # A narrower rule goes before the wider one, also for who is connected.
                host.push(binding("narrow", one, "cgroup:path:/others", "unix:uid:0"))
                kept.wait_dead()
            assert host.agent.kernel.control.generation == generation, "not in place"
            host.push(remove=((Kind.BINDING, "narrow"),))
            with Caller(others, server.port) as again:
                assert again.is_alive()
    finally:
        del host.agent.keeper.book_rules_min


CATALOGS: Final = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]),
    st.tuples(
        st.sampled_from(["x", "y"]),
        st.sampled_from(
            [("host",), ("unix:uid:1",), ("unix:uid:2",), ("unix:gid:3",), (BOUND,),
             ("cgroup:path:/elsewhere",), ("unix:path:/bin/sh", "unix:uid:1")]
        ),
    ),
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(CATALOGS, min_size=2, max_size=4))
def test_rules_changed_in_place_are_those_of_a_policy_written_whole(
    shared_host: ManagedHost, catalogs: list[dict[str, tuple[str, tuple[str, ...]]]]
) -> None:
    host = shared_host
    host.agent.keeper.book_rules_min = 0
    for key in ("x", "y"):
        if (Kind.LICENSE, key) not in host.model:
            host.push(host.license(key, ["db", "web"]))
    host.push(
        resource("db", "10.1.0.0/24", 80),
        resource("web", "10.2.0.0/24", 80),
        # A policy in force with all shapes: what is changed in place brings no new one.
        binding("z1", "x", "host"),
        binding("z2", "x", "unix:uid:99"),
        binding("z3", "x", "unix:gid:99"),
        binding("z4", "x", "cgroup:path:/nowhere"),
        binding("z5", "x", "unix:path:/bin/none", "unix:uid:99"),
    )
    try:
        for described in catalogs:
            wanted = {(Kind.BINDING, name): binding(name, *each[:1], *each[1])
                      for name, each in described.items()}  # fmt: skip
            gone = tuple(
                key for key in host.model
                if key[0] is Kind.BINDING and key[1] in "abcd" and key not in wanted
            )  # fmt: skip
            host.push(*wanted.values(), remove=gone)
            amended = host.kernel_tables()
            host.agent.policy.renew()  # compiled from the start
            compiled = host.agent.policy.compiled
            assert compiled is not None
            host.agent.policy.apply(compiled)  # and written whole
            assert host.kernel_tables() == amended
            report = host.agent.link.reporter
            maps = report.finish(report.take()).state.maps
            assert all(each.wanted == each.found for each in maps)
    finally:
        del host.agent.keeper.book_rules_min


def test_a_report_says_what_the_kernel_holds_and_who_uses_it(host: ManagedHost) -> None:
    jti = new_jti()
    host.agent.tree.create("/calls")
    folder = host.agent.tree.directory("/calls")
    reporter = host.agent.link.reporter
    with Server() as server:
        host.push(
            resource("one", "127.0.0.1/32", server.port),
            host.license(jti, ["one"]),
            binding("b", jti, "cgroup:path:/calls"),
        )
        host.lease(jti)
        with Caller(folder, server.port) as caller:
            assert caller.is_alive()
            found = reporter.finish(reporter.take())
            assert found.state.revision == host.revision
            assert [(each.license, each.resource, each.sockets) for each in found.live] == [
                (jti, "one", 1)
            ]
            assert all(each.wanted == each.found for each in found.state.maps)
            assert {each.map for each in found.state.maps} >= {"rules", "ports", "networks4"}
            assert any(each.is_attached and each.link_id for each in found.state.hooks)
            counts = {(each.license, each.verdict): each.count for each in found.decisions}
            assert counts[jti, "allow"] >= 1
        # What somebody else changes in the kernel's tables is seen.
        generation = host.agent.kernel.control.generation
        rules = Map(PinFolder(host.under_test.bpffs).maps / "rules")
        try:
            [(key, _value)] = host.agent.kernel.tables.held("rules", generation)
            rules.delete(key)
        finally:
            rules.close()
        found = reporter.finish(reporter.take())
        assert [each.map for each in found.state.maps if each.wanted != each.found] == ["rules"]


class Server:
    """A listener on loopback that takes connections and says nothing."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
        for each in self._held:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                self._held.append(self._socket.accept()[0])
            except OSError:
                return


class Caller:
    """A process that connects once, and tells what became of its connection."""

    _CODE: Final = """
import errno, json, select, socket, sys
def tell(word):
    print(json.dumps({"said": word}), flush=True)
try:
    held = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5)
except OSError as error:
    tell(errno.errorcode[error.errno])
    sys.stdin.read()
    sys.exit()
tell("OK")
while True:
    ready = select.select([sys.stdin, held], [], [])[0]
    if held in ready:
        try:
            held.recv(1)
        except OSError:
            pass
        tell("dead")
        sys.exit()
    if not sys.stdin.readline():
        sys.exit()
    tell("alive")
"""

    def __init__(self, cgroup: Path, port: int) -> None:
        self._program = programs.start(cgroup, [*programs.PYTHON, "-c", self._CODE, str(port)])

    def __enter__(self) -> Self:
        line = self._program.line()
        assert line is not None
        self._said = str(line["said"])
        return self

    def __exit__(self, *_: object) -> None:
        self._program.__exit__(None, None, None)

    def is_alive(self) -> bool:
        """It is connected, and nobody has ended that."""
        assert self._said == "OK", self._said
        self._program.answer({})
        line = self._program.line()
        return line is not None and line["said"] == "alive"

    def wait_dead(self) -> None:
        """Its connection was ended."""
        line = self._program.line()
        assert line is not None
        assert line["said"] == "dead"

    def refused(self) -> str:
        """How its connection was refused."""
        return self._said
