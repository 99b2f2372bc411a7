# SPDX-License-Identifier: Apache-2.0
"""The agent: state, licenses, policy and kernel tables, and the order in which they change.

Every method that changes the kernel runs on one thread (`Agent.kernel`), so changes never
interleave; the event loop only waits for it.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from licagent.daemon.break_glass import BreakGlass
from licagent.daemon.clock_keeper import ClockKeeper
from licagent.daemon.conditions_keeper import ConditionsKeeper
from licagent.daemon.control.keeper import ControlKeeper
from licagent.daemon.control.link import ControlLink
from licagent.daemon.control.membership import ControlMembership
from licagent.daemon.decisions import DecisionBook, NameBook, Record, rfc3339
from licagent.daemon.exec_times import ExecTimes
from licagent.daemon.identity_keeper import IdentityKeeper
from licagent.daemon.kernel_side import KernelSide, load_programs
from licagent.daemon.kernel_watch import KernelWatch
from licagent.daemon.licensing.judging import Licensing
from licagent.daemon.metering.keeper import MeteringKeeper
from licagent.daemon.outside import SyncWatch
from licagent.daemon.policy.in_force import PolicyInForce
from licagent.daemon.policy.keeper import PolicyKeeper
from licagent.daemon.self_check import SelfCheck
from licagent.daemon.settings_keeper import SettingsKeeper
from licagent.daemon.shadow.usage import ShadowBook
from licagent.domain.config import AgentConfig
from licagent.domain.license import HostFacts, LicenseState
from licagent.host import posture
from licagent.host.cgroups import CgroupTree
from licagent.host.digests import DigestCache
from licagent.host.facts import FactReader
from licagent.host.users import Users
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.enforcement_structs import Event, SocketRecord
from licagent.kernel.events import EventReader
from licagent.kernel.numbers import EventKind
from licagent.store.errors import StoreError
from licagent.store.eventlog import EventLog
from licagent.store.licenses import LicenseRecords
from licagent.store.numbers import PersistentNumbering
from licagent.store.statedir import StateDir
from lictoken.claims import License

_log: Final = logging.getLogger(__name__)

_KERNEL_CLOCK_LATE_NS: Final = 20_000_000
"""More than bpf/clock.h is late at the most, a tick: 10 ms at HZ=100."""


class Agent:
    """One host's agent. Construct, `start`, then `close`; enforcement stays."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        notify: Callable[[Record], None],
        measured: Callable[[], None] = lambda: None,
    ) -> None:
        """Take the state folder. Raises StateDirBusy when another daemon has it.

        `measured` is called on another thread when there is something for `measure` to do.
        """
        self.config = config
        self.started_at = time.time()
        self._notify = notify
        self._measured = measured
        self.state = StateDir(config.state_dir)
        self.tree = CgroupTree.open(config.cgroup_root or "auto")
        self.users = Users()
        self.sync_watch = SyncWatch()
        self.clock_keeper = ClockKeeper(self)
        self.clock = self.clock_keeper.clock
        self.records = LicenseRecords(self.state)
        self.numbering = PersistentNumbering(self.state)
        self.host = HostFacts(
            hostname=socket.gethostname(),
            machine_id=posture.machine_id() or "",
            labels=config.labels,
        )
        self.licensing = Licensing(
            config.licenses_dir, config.trust_path, self.records, self.clock, self.host
        )
        self.keeper = PolicyKeeper(config.policy_dir, self.state, self.numbering, config.failsafe)
        self.keeper.withheld = self.licensing.withheld
        self.self_check = SelfCheck(self.state)
        self.kernel_watch = KernelWatch(self.emit)
        facts = FactReader(
            synchronised=self.sync_watch.is_synchronised, is_whole=self.self_check.is_whole
        )
        self.conditions = ConditionsKeeper(self, facts)
        self.membership = ControlMembership(self)
        self.control = ControlKeeper(self)
        self.link = ControlLink(self)
        self.metering = MeteringKeeper(self)
        self.log = EventLog(self.state.subdirectory("events"))
        self.shadow = ShadowBook()
        self.names = NameBook(self.records.jti_of)
        self.book = DecisionBook(self.names, self.tree, self.users)
        self.policy = PolicyInForce(self)
        self.metrics_problem = ""
        self.settings: SettingsKeeper | None = None
        """Where the settings can be read again; set by whoever starts the agent."""
        self.is_detached = False
        self.glass = BreakGlass(self)
        self.kernel_side: KernelSide | None = None
        self.identity: IdentityKeeper | None = None
        self.reader: EventReader | None = None
        self.last_cut: list[SocketRecord] = []
        self._cut_at_ns = 0  # trusted time

    # --- start and end

    def start(self) -> None:
        """Load the programs, then licenses, then the policy. Blocking.

        Raises:
            KernelUnavailable: the core could not be loaded.
        """
        pins = PinFolder(self.config.bpffs_dir)
        report = load_programs(pins, self.tree.root, self.config.loader)
        for note in report["notes"]:
            _log.warning("loading the programs: %s", note)
        self.kernel_side = KernelSide(pins, self.tree.id_of("/"), report)
        self.kernel_side.interfaces.begin()
        self.identity = IdentityKeeper(
            self.kernel_side.identity,
            self.kernel_side.iterators,
            self.tree,
            DigestCache(self.state.path / "digests.json", posture.boot_id()),
            exec_times=ExecTimes(self.kernel_side.control),
            measured=self._measured,
        )
        self.metering.begin()
        self.reader = EventReader(pins, self._take_event)
        for record in self.log.last(1000):
            self.shadow.take(record)
        cut = self.log.tail_cut
        if cut is not None:
            self.emit("events", f"{cut.bytes_cut} bytes of a torn event were cut off {cut.segment}")
        self.glass.restore()
        self.self_check.begin(self.kernel_side.hooks)
        self.kernel_watch.begin(self.kernel_side)
        self.conditions.begin()
        self.licensing.load()
        self.link.boot()
        self.write_licenses()
        self.policy.load()
        self.conditions.judge()  # what comes after it is a change
        self.clock_keeper.save()

    def close(self) -> None:
        """Save and close everything. The kernel goes on deciding."""
        self.sync_watch.stop()
        self.clock_keeper.save()
        if self.reader is not None:
            self.reader.consume()
            self.reader.close()
        if self.identity is not None:
            self.identity.close()
        if self.kernel_side is not None:
            self.kernel_side.close()
        self.log.sync()
        self.log.close()
        self.link.close()
        self.state.close()

    @property
    def kernel(self) -> KernelSide:
        """The kernel side; there once `start` has returned."""
        if self.kernel_side is None:
            raise RuntimeError("the agent was not started")
        return self.kernel_side

    def identity_keeper(self) -> IdentityKeeper:
        """What keeps identities; there once `start` has returned."""
        if self.identity is None:
            raise RuntimeError("the agent was not started")
        return self.identity

    # --- licenses

    def licenses(self) -> Mapping[str, License]:
        """Verified licenses by id."""
        return {jti: held.license for jti, held in self.licensing.held.items()}

    def write_licenses(self) -> None:
        """Bring the kernel's license table up to date, and end the sockets that died."""
        self.metering.policy_changed()
        if self.licensing.write(self.kernel.licenses):
            self.cut()

    def write_few(self, jtis: Iterable[str]) -> None:
        """Bring the slots of a few licenses up to date, and end the sockets that died.

        Not those of all licenses: a revocation does not wait for the judgement of the others.
        """
        died = False
        for jti in jtis:
            held = self.licensing.held.get(jti)
            if held is not None:
                died |= self.licensing.write_one(self.kernel.licenses, held.license)
        self.metering.policy_changed()
        if died:
            self.cut()

    def cut(self) -> int:
        """End the sockets whose tag no longer holds; how many there were."""
        self._cut_at_ns = self.clock.now_ns(posture.boottime_ns()) - _KERNEL_CLOCK_LATE_NS
        self.last_cut = self.kernel.cut()
        pending = [record for record in self.last_cut if not record.destroyed]
        if pending:
            self._destroy_by_netlink(pending)
        return len(self.last_cut)

    def license_end_s(self) -> float | None:
        """Seconds until the first license end that no cut has followed yet; it may be past."""
        end_ns = self.licensing.next_end_ns(self._cut_at_ns)
        if end_ns is None:
            return None
        return (end_ns - self.clock.now_ns(posture.boottime_ns())) / 1e9

    def _destroy_by_netlink(self, records: list[SocketRecord]) -> None:
        """Where the kernel has no bpf_sock_destroy (before 6.5)."""
        from licagent.host.isolated import IsolatedFailed, destroy_sockets

        try:
            destroy_sockets(record.cookie for record in records)
        except IsolatedFailed as error:
            _log.error("sockets of ended licenses are silenced but not closed: %s", error)

    # --- events

    def _take_event(self, event: Event) -> None:
        if event.kind == EventKind.EXEC:
            if self.identity is not None:
                self.identity.ask(event)
            return
        if event.kind == EventKind.GUARD:
            self.kernel_watch.refused(event)
            return
        record = self.book.record(event)
        self.keep(record)

    def keep(self, record: Record) -> None:
        """Log a record, count it as shadow usage if it is, and tell who follows."""
        self.shadow.take(record)
        try:
            record = {"seq": self.log.append(record), **record}
        except StoreError as error:
            # Counted (`lost_on_disk`); the kernel's counters are exact all the same.
            _log.error("%s", error)
        self._notify(record)

    def emit(self, kind: str, message: str, **fields: Any) -> None:
        """A change that is no decision of the kernel: policy, license, break-glass, clock."""
        record: Record = {
            "kind": kind,
            "at": rfc3339(time.time()),
            "verdict": None,
            "message": message,
            "count": 1,
            **fields,
        }
        _log.info("%s", message, extra={"fields": {"kind": kind, **fields}})
        self.keep(record)

    def settle_repeats(self) -> None:
        """Tell of repeats that ended without an event of their own."""
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for key, count in self.kernel.counters.take_settled(now):
            self.keep(self.book.folded(key, count))

    def measure(self) -> None:
        """Put into the kernel what was measured since."""
        self.identity_keeper().take_measured()

    # --- questions

    def state_of(self, license_: License) -> LicenseState:
        """The state of a license now."""
        return self.licensing.judge(license_).state

    def detach(self, *, usage_lost: str = "") -> list[dict[str, Any]]:
        """Remove everything of ours from the kernel; what was attached.

        `usage_lost`: why the kernel's usage goes with it, for the record.
        """
        hooks = [
            {"hook": hook.name, "link_id": hook.link_id}
            for hook in self.kernel.hooks()
            if hook.attached
        ]
        self.emit("detach", f"{len(hooks)} programs detached: nothing is enforced any more")
        if usage_lost:
            message = f"what was used since the last commit is lost: {usage_lost}"
            self.emit("metering", message, problem=usage_lost)
        self.kernel_watch.end()  # it would lock again
        self.kernel.interfaces.close()  # it would attach again
        # First of all: the program that unlocks at the daemon's end goes with the pins, and whoever
        # goes on after a daemon that died half way must be let in.
        try:
            self.kernel.guard.unlock()
        except OSError as error:
            _log.error("the guard stays locked while the pins are removed: %s", error)
        self.kernel.pins.remove()
        self.is_detached = True
        return hooks
