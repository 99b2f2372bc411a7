# SPDX-License-Identifier: Apache-2.0
"""Any sequence of changes, losses, repetitions, cuts and crashes ends in the server's tables.

The server here is a model; the agent's side is all real: gathering, verifying, the copy, the
file on the disk. A crash leaves what a kill would leave: the files as they are at that moment,
copied away, and nothing of the process.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

from hypothesis import event, given, settings
from hypothesis import strategies as st

from licagent.control.boot import read_kept
from licagent.control.catalog import CatalogKeeper
from licagent.control.wire import delta_part, signed
from licagent.domain.catalog import NackReason, Refused
from licagent.domain.delta_parts import DeltaParts
from licagent.domain.hostidentity import Identity
from licagent.store.catalog import CatalogStore

HOST = "a-host"

names = st.sampled_from(["a", "b", "c", "d"])
payloads = st.one_of(st.none(), st.binary(min_size=1, max_size=3))
changes = st.lists(
    st.tuples(st.integers(1, 3), names, payloads),
    min_size=1,
    max_size=4,
    unique_by=lambda change: change[:2],
)
crash_points = st.sampled_from(
    [
        "before begin",
        "after begin",
        "before kernel",
        "after kernel",
        "before commit",
        "after commit",
    ]
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("change"), changes),
        st.tuples(st.just("change and push"), changes),
        st.tuples(st.just("change and deliver"), changes),
        st.tuples(st.just("push"), st.integers(1, 3)),
        st.tuples(st.just("push whole"), st.integers(1, 3)),
        st.tuples(st.just("deliver"), st.integers(1, 6)),
        st.tuples(st.just("lose"), st.integers(0, 5)),
        st.tuples(st.just("repeat"), st.integers(0, 5)),
        st.tuples(st.just("swap"), st.integers(0, 5)),
        st.tuples(st.just("spoil"), st.integers(0, 5)),
        st.tuples(st.just("cut"), st.none()),
        st.tuples(st.just("refuse"), st.sampled_from([NackReason.POLICY, NackReason.KERNEL])),
        st.tuples(st.just("full disk"), st.sampled_from(["begin", "commit"])),
        st.tuples(st.just("crash"), crash_points),
    ),
    max_size=40,
)


class Killed(BaseException):
    """The agent is gone."""


class FragileStore:
    """The real store, on a disk that fills up and in a process that is killed."""

    def __init__(self, host):
        self.host = host
        self.store = CatalogStore(host.path / "catalog.db")
        self.load = self.store.load
        self.load_leases = self.store.load_leases
        self.full_at = None

    def begin(self, *args, **more):
        self.host.at("before begin")
        self.fail("begin")
        write = self.store.begin(*args, **more)
        self.host.writes.append(write)
        self.host.at("after begin")
        return FragileWrite(self, write)

    def fail(self, at):
        if self.full_at == at:
            self.full_at = None
            raise Refused(NackReason.DISK, "no space left")


class FragileWrite:
    def __init__(self, store, write):
        self.store = store
        self.write = write

    def commit(self):
        self.store.host.at("before commit")
        try:
            self.store.fail("commit")
        except Refused:
            self.rollback()
            raise
        self.store.host.writes.remove(self.write)
        self.write.commit()
        self.store.host.at("after commit")

    def rollback(self):
        if self.write in self.store.host.writes:
            self.store.host.writes.remove(self.write)
            self.write.rollback()


class Identities:
    def __init__(self, identity):
        self.identity = identity

    def load(self):
        return self.identity

    def replace(self, old, new):
        self.identity = new
        return True


class Agent:
    """A host: a kernel that outlives the agent, a disk, and the agent's memory."""

    def __init__(self, root, model, identity, kit):
        self.root = root
        self.lives = 0
        self.path = root / "0"
        self.path.mkdir()
        self.model = model
        self.kit = kit
        self.identities = Identities(identity)
        self.kernel = frozenset()
        self.crash_at = None
        self.refuse = None
        self.writes = []
        self.start()

    def start(self):
        self.store = FragileStore(self)
        kept, problems = read_kept(self.identities, self.store, self.kit.SETTINGS)
        assert problems == ()
        view = kept.replica.view()
        self.kernel = _set(view.objects.values()) if view else frozenset()
        self.check()
        self.keeper = CatalogKeeper(
            self.identities,
            self.store,
            self,
            replica=kept.replica,
            identity=kept.identity,
            assignment=kept.assignment,
            trust=kept.trust,
        )
        self.parts = DeltaParts()

    def at(self, point):
        """A kill, if it is due here: keep the files as they are."""
        if self.crash_at != point:
            return
        self.crash_at = None
        self.lives += 1
        after = self.root / str(self.lives)
        after.mkdir()
        for each in self.path.glob("catalog.db*"):
            shutil.copy(each, after / each.name)
        raise Killed

    def bury(self):
        """What is left of the process before: its open files."""
        for write in self.writes:
            write.rollback()
        self.writes = []
        self.store.store.close()
        self.path = self.root / str(self.lives)
        self.start()

    async def apply_catalog(self, view):
        self.at("before kernel")
        if self.refuse is not None:
            reason, self.refuse = self.refuse, None
            raise Refused(reason, "no")
        self.kernel = _set(view.objects.values())
        self.check()
        self.at("after kernel")

    async def apply_revocations(self, tokens):
        raise AssertionError("no revocations here")

    def check(self):
        """What is enforced is some signed snapshot, whole."""
        assert self.kernel == frozenset() or self.kernel in self.model.signed_sets.values()

    async def take(self, message):
        """The revision ACKed, or the reason of the NACK, or None for a part."""
        try:
            whole = self.parts.add(delta_part(message))
            if whole is None:
                return None
            taken = await self.keeper.take_delta(whole)
        except Refused as error:
            self.agree()
            return error.reason
        except Killed:
            self.bury()
            return "killed"
        self.agree()
        assert self.kernel == self.model.signed_sets[taken.revision]
        return taken.revision

    def agree(self):
        """Kernel, copy and disk hold the same snapshot."""
        self.check()
        stored = self.store.load()
        assert _set(self.keeper.replica.objects.values()) == self.kernel
        assert (_set(stored.objects) if stored else frozenset()) == self.kernel


def _set(objects):
    return frozenset((each.kind, each.name, each.payload) for each in objects)


class World:
    """Server, wire and agent."""

    def __init__(self, root, kit):
        self.model = kit.Model()
        proof = signed(self.model.assignment(HOST))
        identity = Identity(b"", HOST, (), (), self.model.trust, proof, b"\0" * 32, "a:1", "a:2", 0)
        self.agent = Agent(root, self.model, identity, kit)
        self.wire = []
        self.connect()

    def connect(self):
        """A new stream: what was on the wire is gone, and Hello says where the host is."""
        self.wire = []
        self.agent.parts = DeltaParts()
        manifest = self.agent.keeper.replica.manifest
        self.base = manifest.revision if manifest else 0
        if manifest is not None and self.model.digests[self.base] != manifest.digest:
            self.base = 0
        self.sent = self.base

    def push(self, part_size, *, whole=False):
        since = 0 if whole or self.sent == 0 else self.sent
        if self.model.revision > self.sent or whole:
            self.wire += self.model.parts(since, part_size)
            self.sent = self.model.revision

    async def deliver(self, count):
        for _ in range(min(count, len(self.wire))):
            answer = await self.agent.take(self.wire.pop(0))
            event(f"answer: {answer!r}" if isinstance(answer, NackReason | str) else "taken")
            if answer == "killed":
                self.connect()
                return
            if isinstance(answer, NackReason):
                self.sent = 0  # as the protocol has it: a reset follows

    async def step(self, what, how):
        agent, wire, model = self.agent, self.wire, self.model
        if what.startswith("change"):
            real = [
                (kind, name, data)
                for kind, name, data in how
                if data is not None or (kind, name) in model.objects
            ]
            if real:
                model.change(*real)
                if what != "change":
                    self.push(1 + len(real) % 3)
                if "deliver" in what:
                    await self.deliver(len(wire))
        elif what.startswith("push"):
            if model.revision:
                self.push(how, whole="whole" in what)
        elif what == "deliver":
            await self.deliver(how)
        elif what == "cut":
            self.connect()
        elif what == "refuse":
            agent.refuse = how
        elif what == "full disk":
            agent.store.full_at = how
        elif what == "crash":
            agent.crash_at = how
        elif wire:
            self.disturb(what, how % len(wire))

    def disturb(self, what, at):
        wire = self.wire
        if what == "lose":
            del wire[at]
        elif what == "repeat":
            wire.insert(at, wire[at])
        elif what == "swap":
            wire.append(wire.pop(at))
        elif wire[at].objects:
            wire[at] = type(wire[at]).FromString(wire[at].SerializeToString())
            wire[at].objects[0].payload += b"!"
            wire[at].objects[0].removed = False

    async def end(self):
        """The world calms down: one good stream, and all is as it should be."""
        self.agent.refuse = self.agent.crash_at = self.agent.store.full_at = None
        self.connect()
        for _ in range(2):
            self.push(2)
            await self.deliver(len(self.wire))
        model = self.model
        if not model.revision:
            return
        assert self.agent.kernel == model.live()
        assert self.agent.keeper.replica.revision == model.revision
        stored = self.agent.store.load()
        assert _set(stored.objects) == model.live()
        kept, problems = read_kept(self.agent.identities, self.agent.store, self.agent.kit.SETTINGS)
        assert problems == ()
        assert kept.replica.revision == model.revision


@settings(max_examples=150)
@given(plan=steps)
def test_whatever_happens_it_ends_in_the_servers_tables(kit, plan):
    with tempfile.TemporaryDirectory() as root:

        async def live():
            world = World(Path(root), kit)
            try:
                for what, how in plan:
                    await world.step(what, how)
                await world.end()
            finally:
                world.agent.store.store.close()

        asyncio.run(live())
