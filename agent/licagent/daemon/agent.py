# SPDX-License-Identifier: Apache-2.0
"""The agent: state, licenses, policy and kernel tables, and the order in which they change.

Every method that changes the kernel runs on one thread (`Agent.kernel`), so changes never
interleave; the event loop only waits for it.
"""

from __future__ import annotations

import gc
import logging
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from licagent.daemon.conditions_keeper import ConditionsKeeper
from licagent.daemon.control_keeper import ControlKeeper
from licagent.daemon.control_link import ControlLink
from licagent.daemon.decisions import (
    DecisionBook,
    NameBook,
    Record,
    boottime_to_unix,
    rfc3339,
)
from licagent.daemon.exec_times import ExecTimes
from licagent.daemon.identity_keeper import IdentityKeeper
from licagent.daemon.kernel_side import KernelSide, load_programs
from licagent.daemon.kernel_watch import KernelWatch
from licagent.daemon.licensing import Licensing
from licagent.daemon.metering_keeper import MeteringKeeper
from licagent.daemon.outside import SyncWatch
from licagent.daemon.policy_keeper import Compiled, PolicyKeeper
from licagent.daemon.self_check import SelfCheck
from licagent.daemon.settings_keeper import SettingsKeeper
from licagent.daemon.shadow import ShadowBook
from licagent.domain.clock import ClockChange, Reading, TrustedClock
from licagent.domain.config import AgentConfig
from licagent.domain.license import HostFacts, LicenseState
from licagent.domain.policy import PolicyError
from licagent.domain.rulebook import RuleChange
from licagent.host import posture
from licagent.host.cgroups import CgroupTree
from licagent.host.digests import DigestCache
from licagent.host.facts import FactReader
from licagent.host.users import Users
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.events import EventReader
from licagent.kernel.layout import Event, EventKind, SocketRecord
from licagent.store.clockstate import ClockStore
from licagent.store.errors import DocumentDamaged, StoreError
from licagent.store.eventlog import EventLog
from licagent.store.licenses import LicenseRecords
from licagent.store.numbers import PersistentNumbering
from licagent.store.statedir import StateDir
from lictoken.claims import License

_log: Final = logging.getLogger(__name__)

_GLASS_DOCUMENT: Final = "break-glass"
_GLASS_SCHEMA: Final = "licagent.break-glass/1"
_LARGE_POLICY_RULES: Final = 10_000
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
        self._clock_store = ClockStore(self.state)
        self.clock = self._load_clock()
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
        self.control = ControlKeeper(self)
        self.link = ControlLink(self)
        self.metering = MeteringKeeper(self)
        self.log = EventLog(self.state.subdirectory("events"))
        self.shadow = ShadowBook()
        self.names = NameBook(self.records.jti_of)
        self.book = DecisionBook(self.names, self.tree, self.users)
        self.compiled: Compiled | None = None
        self.loaded_at = 0.0
        self.policy_problem = ""
        self.metrics_problem = ""
        self.settings: SettingsKeeper | None = None
        """Where the settings can be read again; set by whoever starts the agent."""
        self.is_detached = False
        self.glass: dict[str, Any] | None = None
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
        self._restore_glass()
        self.self_check.begin(self.kernel_side.hooks)
        self.kernel_watch.begin(self.kernel_side)
        self.conditions.begin()
        self.licensing.load()
        self.link.boot()
        self.write_licenses()
        self.load_policy()
        self.conditions.judge()  # what comes after it is a change
        self.save_clock()

    def close(self) -> None:
        """Save and close everything. The kernel goes on deciding."""
        self.sync_watch.stop()
        self.save_clock()
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

    # --- policy

    def load_policy(self) -> None:
        """Put the installed policy in force; if it is refused, the last good one stays."""
        try:
            compiled = self.keeper.compile(self.keeper.installed(), self.licenses())
            if self.compiled is None or compiled.tables != self.compiled.tables:
                self.apply(compiled)
            else:
                self.take_over(compiled)
            self.policy_problem = ""
        except PolicyError as error:
            self.policy_problem = str(error)
            _log.error("the installed policy is refused, the last good one stays: %s", error)
            if self.compiled is not None:
                self.renew_policy()  # licenses may have come or gone
                return
            last = self.keeper.recall(self.licenses())
            if last is not None:
                self.apply(last)

    def apply(self, compiled: Compiled) -> int:
        """Switch to a compiled policy, everywhere at once; its generation."""
        gc.unfreeze()
        kernel, identity = self.kernel, self._identity()
        covering = kernel.interfaces.begin()
        tables = compiled.tables
        for number in {number for rule in tables.rules for number in rule.licenses}:
            kernel.licenses.slot(number)
        self.licensing.write(kernel.licenses)
        identity.prepare(tables)
        kernel.interfaces.await_round(covering)
        kernel.control.measure = bool(tables.digests)
        generation = kernel.tables.switch(
            tables,
            kernel.licenses.slot,
            enforce=self.config.mode == "enforce",
            keep_existing=self.config.existing_sockets == "keep",
        )
        previous, self.compiled = self.compiled, compiled
        self.metering.policy_changed()
        self.loaded_at = time.time()
        self.names.take(tables)
        self.licensing.settle(tables.withheld)
        self.licensing.write(kernel.licenses)  # what only the new tables leave room for
        identity.settle(tables)
        if previous is None or previous.texts != compiled.texts:
            self.keeper.remember(compiled.texts)
        self.keeper.remember_resources(compiled.managed)
        kernel.adopt()
        self.cut()
        self.emit("policy", f"policy generation {generation} is in force", generation=generation)
        if len(tables.rules) > _LARGE_POLICY_RULES:
            # It stays for long, and walking it would stop everything for 0.2 s now and then.
            gc.collect()
            gc.freeze()
        return generation

    def take_over(self, compiled: Compiled) -> None:
        """Follow a policy whose tables are those in force: what it measures may be another."""
        previous, self.compiled = self.compiled, compiled
        if previous is None or previous.texts != compiled.texts:
            self.keeper.remember(compiled.texts)
        self.metering.policy_changed()

    def own_texts(self) -> tuple[tuple[str, str], ...]:
        """The host's own policy files: those in force, or those installed before any are."""
        if self.compiled is not None:
            return self.compiled.texts
        try:
            return self.keeper.installed()
        except PolicyError:
            return ()  # told of by `load_policy`

    def put_in_force(self, compiled: Compiled) -> None:
        """Bring the kernel to a policy: single rules where that will do, else all of it."""
        previous = self.compiled
        amendment = compiled.amendment
        if (
            previous is not None
            and amendment is not None
            and amendment.base is previous.tables
            and self._is_amendable(compiled, amendment.change)
        ):
            self._amend(compiled, amendment.change)
        elif previous is None or compiled.tables != previous.tables:
            try:
                self.apply(compiled)
            except (StoreError, OSError):
                if previous is not None and self.compiled is compiled:
                    self.apply(previous)  # the kernel has taken what the disk could not
                raise
        else:
            self.licensing.settle(compiled.tables.withheld)
            self.write_licenses()
            self.take_over(compiled)

    def _is_amendable(self, compiled: Compiled, change: RuleChange) -> bool:
        """Whether the rules can be changed in the generation in force.

        A tag that says "observed" holds for its generation. Where there may be such tags, only
        a new generation has their sockets decided anew.
        """
        config = self.config
        observed = {each.number for each in compiled.tables.resources if not each.enforce}
        return (
            change.fits_in_place
            and config.mode == "enforce"
            and config.existing_sockets == "cut"
            and not change.resources & observed
        )

    def _amend(self, compiled: Compiled, change: RuleChange) -> None:
        """Change single rules in the kernel, at the price of the change."""
        kernel, identity, tables = self.kernel, self._identity(), compiled.tables
        previous = self.compiled
        for rule in (*change.added, *(after for _before, after in change.changed)):
            for number in rule.licenses:
                kernel.licenses.slot(number)
        has_new_names = previous is None or any(
            getattr(tables, part) is not getattr(previous.tables, part)
            for part in ("scopes", "paths", "digests")
        )
        if has_new_names:
            identity.prepare(tables)
            kernel.control.measure = bool(tables.digests)
        kernel.tables.amend(change, kernel.licenses.slot)
        for number in change.licenses:
            kernel.licenses.renew(number)
        self.compiled = compiled
        self.metering.policy_changed()
        self.loaded_at = time.time()
        self.names.amend(tables, change)
        if has_new_names:
            identity.settle(tables)
        self.cut()
        generation = kernel.control.generation
        self.emit(
            "policy",
            f"{len(change)} rules of policy generation {generation} are others",
            generation=generation,
            added=len(change.added),
            changed=len(change.changed),
            removed=len(change.removed),
        )

    def follow_resolvers(self) -> None:
        """Compile the policy in force again if the host's name servers are others now."""
        if self.keeper.resolvers_changed():
            self.renew_policy()

    def renew_policy(self) -> bool:
        """Compile the policy in force again, because something beside its files has changed.

        False, and said in the log, where it does not compile any more; it stays as it is then.
        """
        if self.compiled is None:
            return True
        renewed = self.keeper.again(self.compiled.texts, self.licenses())
        if renewed is None:
            return False
        self.put_in_force(renewed)
        return True

    def _identity(self) -> IdentityKeeper:
        if self.identity is None:
            raise RuntimeError("the agent was not started")
        return self.identity

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
        self._identity().take_measured()

    # --- time

    def _load_clock(self) -> TrustedClock:
        try:
            known = self._clock_store.load()
        except StoreError as error:
            _log.error("the clock's record is lost, the wall clock is believed: %s", error)
            known = None
        return TrustedClock(self.reading(), known)

    def reading(self) -> Reading:
        """The clocks now."""
        sync = self.sync_watch.clock_sync()
        return Reading(
            wall_ns=time.time_ns(),
            boottime_ns=posture.boottime_ns(),
            boot_id=posture.boot_id(),
            synchronized=bool(sync and sync.synchronised),
        )

    def watch_clock(self) -> None:
        """Take a reading; a clock that moved ahead moves the kernel's deadlines."""
        change = self.clock.observe(self.reading())
        if change & ClockChange.ADVANCED:
            self.emit("clock", "trusted time moved ahead; license ends were set again")
            self.write_licenses()
            self.cut()  # what ended by that
            # At once: the next saving is up to a minute away, and a kill would undo the step.
            self._clock_store.save(self.clock.state)

    def save_clock(self) -> None:
        """Make trusted time durable, so that a reboot gains nothing."""
        if self.kernel_side is not None:
            self.watch_clock()  # a step must not go by unnoticed
        else:
            self.clock.observe(self.reading())
        self._clock_store.save(self.clock.state)

    # --- break-glass

    def open_glass(self, for_s: int, reason: str, by: str) -> dict[str, Any]:
        """Open the host for a bounded time. The kernel itself closes it."""
        until_ns = posture.boottime_ns() + for_s * 1_000_000_000
        glass = {
            "until": rfc3339(boottime_to_unix(until_ns)),
            "until_boottime_ns": until_ns,
            "boot_id": posture.boot_id(),
            "reason": reason,
            "by": by,
        }
        # On the record first: the host must never be open without it.
        self.state.write_document(_GLASS_DOCUMENT, _GLASS_SCHEMA, glass)
        self.emit(
            "break-glass",
            f"the host is open until {glass['until']}, by {by}: {reason}",
            until=glass["until"],
            reason_text=reason,
            by=by,
        )
        self.log.sync()
        self.kernel.control.break_glass_until_ns = until_ns
        self.glass = glass
        return glass

    def end_glass(self, by: str) -> bool:
        """Close the host again; False if it was not open."""
        if self.glass is None:
            return False
        # The record first: a crash in between leaves a host that the next start closes.
        self.state.delete_document(_GLASS_DOCUMENT)
        self.kernel.control.break_glass_until_ns = 0
        self.glass = None
        self.emit("break-glass", f"the host is closed again, by {by}", by=by)
        self.cut()
        return True

    def glass_left_s(self) -> float | None:
        """Seconds until break-glass ends; None when the host is closed."""
        if self.glass is None:
            return None
        return (int(self.glass["until_boottime_ns"]) - posture.boottime_ns()) / 1e9

    def _restore_glass(self) -> None:
        try:
            glass = self.state.read_document(_GLASS_DOCUMENT, _GLASS_SCHEMA)
        except DocumentDamaged as error:
            _log.error("%s", error)
            glass = None
        if glass is None:
            # Open without a record (an edit of the table): closed.
            self.kernel.control.break_glass_until_ns = 0
            return
        self.glass = glass
        if glass["boot_id"] != posture.boot_id() or (self.glass_left_s() or 0) <= 0:
            self.end_glass("time")
            return
        # The maps may be new, and a crash may have come before the word was written.
        self.kernel.control.break_glass_until_ns = int(glass["until_boottime_ns"])

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
