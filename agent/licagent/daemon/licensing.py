# SPDX-License-Identifier: Apache-2.0
"""Licenses on this host: read, verified, put on record, judged, written to the kernel."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from licagent.domain.clock import TrustedClock
from licagent.domain.entitlements import Entitlements, has_conditions, judge_entitlements
from licagent.domain.license import HostFacts, Judgement, LicenseState, judge
from licagent.domain.reason import Reason
from licagent.domain.slot import ATTESTED_NS, OTHERS_SLACK_NS, SlotValues, slot_values
from licagent.kernel.layout import NANOSECONDS_MAX
from licagent.kernel.licenses import LicenseTable
from licagent.store.errors import StoreError
from licagent.store.licenses import LicenseNotAccepted, LicenseRecords, Statement
from lictoken.claims import AUDIENCE, License
from lictoken.errors import Refusal, TokenError
from lictoken.revocation import Revocation, RevocationAction, verify_revocation
from lictoken.trust import KeyStatus, TrustStore
from lictoken.validity import Standing, standing
from lictoken.verify import read_license_file, verify_license

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Held:
    """A license that verified, and where it came from."""

    license: License
    file: Path | None  # None: delivered by the control plane
    text: bytes

    @property
    def managed(self) -> bool:
        """Whether the control plane delivered it: such a license grants while it is leased."""
        return self.file is None

    @property
    def origin(self) -> str:
        """Its file, or who delivered it."""
        return "control plane" if self.file is None else str(self.file)


@dataclass(frozen=True, slots=True)
class Refused:
    """A file that is no license here, and why."""

    file: str
    reason: str  # the refusal's name
    detail: str
    hint: str


class Licensing:
    """The licenses of one host."""

    def __init__(
        self,
        folder: Path,
        trust_path: Path,
        records: LicenseRecords,
        clock: TrustedClock,
        host: HostFacts,
    ) -> None:
        self._folder = folder
        self._trust_path = trust_path
        self._records = records
        self._clock = clock
        self.host = host
        self._filed: dict[str, Held] = {}
        self._managed: dict[str, Held] = {}
        self._filed_refused: tuple[Refused, ...] = ()
        self._managed_refused: tuple[Refused, ...] = ()
        self._verified_with = b""
        self.all_or_nothing = False
        """A license of which conditions take something grants nothing: no policy could be made
        that leaves only that out."""
        self._left_out: frozenset[tuple[str, str]] = frozenset()
        self._written: dict[int, SlotValues] = {}
        self._leases: Mapping[int, int] = MappingProxyType({})  # number -> end, CLOCK_BOOTTIME
        self._denied: frozenset[int] = frozenset()
        self.trust = self._managed_trust = TrustStore()
        self.trust_problem = ""
        self.held: dict[str, Held] = {}
        self.refused: tuple[Refused, ...] = ()

    def load(self) -> None:
        """Read trust and all files again. A bad file costs only itself."""
        self.load_trust()
        held: dict[str, Held] = {}
        refused: list[Refused] = []
        with self._records.batch():
            for path in self._files(".rev"):
                try:
                    self.take_statement(read_license_file(path), by=f"file {path.name}")
                except (TokenError, StoreError, OSError) as error:
                    refused.append(refusal_of(path.name, error))
            verified: list[Held] = []
            for path in self._files(".lic"):
                try:
                    text = read_license_file(path)
                    verified.append(Held(verify_license(text, self.trust), path, text))
                except (TokenError, OSError) as error:
                    refused.append(refusal_of(path.name, error))
            # Newest first: an older generation is a replay, whatever its file is called.
            for one in sorted(verified, key=lambda each: -each.license.generation):
                try:
                    self._accept(one.license)
                except StoreError as error:
                    refused.append(refusal_of(Path(one.origin).name, error))
                    continue
                held.setdefault(one.license.jti, one)
        self._filed = held
        self._filed_refused = tuple(refused)
        self._verify_managed({jti: one.text for jti, one in self._managed.items()}, again=True)
        self._join()
        _tell(self.refused)

    def load_trust(self) -> None:
        """Read the trust file. Without a good one nothing verifies: nobody is let in.

        The control plane's keys count beside those of the file, and a host that has them needs
        none. A key that either of the two retires is retired.
        """
        self.trust_problem = ""
        self.trust = self._managed_trust
        if len(self._managed_trust) and not self._trust_path.exists():
            return
        try:
            filed = TrustStore.load(self._trust_path)
        except (TokenError, OSError) as error:
            self.trust_problem = str(error)
            return
        retired = (key for key in self._managed_trust if key.status is KeyStatus.RETIRED)
        self.trust = TrustStore((*self._managed_trust, *filed, *retired))

    def set_managed_trust(self, keys: TrustStore) -> None:
        """The issuers' keys that the control plane names."""
        self._managed_trust = keys
        self.load_trust()

    def _accept(self, found: License, *, confirmed: bool = False) -> None:
        """Put a verified license on record. StoreError where it may not stand beside others."""
        self._records.accept(
            found.jti, found.number, found.generation, issuer=found.issuer, confirmed=confirmed
        )
        self._clock.observe_signed(found.issued_at_s, _boottime_ns())

    def take_statement(self, text: bytes, by: str) -> tuple[Revocation, bool]:
        """Verify a signed revocation, suspension or reinstatement, and put it on record.

        False in the second place if it was on record.
        """
        found = verify_revocation(text, self.trust)
        statement = Statement(
            id=found.jti,
            license=found.license,
            issuer=found.issuer,
            action=found.action.value,
            generation=found.generation,
            reason=found.reason,
            at_s=found.issued_at_s,
            by=by,
        )
        is_new = self._records.record(statement)
        self._clock.observe_signed(found.issued_at_s, _boottime_ns())
        return found, is_new

    def revoke_here(self, jti: str, reason: str, by: str) -> bool:
        """Revoke on this host, for all generations up to the newest; False if it was."""
        held = self.held.get(jti)
        if held is not None and self.revocation(held.license) is not None:
            return False
        generation = max(self._records.newest_generation(jti), 1)
        identity = f"local-{time.time_ns():x}-{os.getpid()}"
        self._records.record(
            Statement(identity, jti, "", "revoke", generation, reason, int(time.time()), by)
        )
        return True

    def revocation(self, license_: License) -> Statement | None:
        """The statement that ends this generation of a license, if one does.

        Only the license's own issuer and this host's root may end it. What root revoked here,
        the issuer may reinstate; what the issuer revoked is revoked for good.
        """
        concerning = [
            each
            for each in self._records.statements(license_.jti)
            if each.generation >= license_.generation and each.issuer in ("", license_.issuer)
        ]
        issued = [each for each in concerning if each.issuer]
        if standing(license_, map(_as_revocation, issued)) is not Standing.ACTIVE:
            return next(each for each in reversed(issued) if each.action != "reinstate")
        for each in concerning:
            if not each.issuer and not any(
                later.action == "reinstate" and later.at_s >= each.at_s for later in issued
            ):
                return each
        return None

    # --- what the control plane says

    def set_managed(self, tokens: Mapping[str, bytes]) -> tuple[Refused, ...]:
        """The licenses that the control plane delivers, whole, by jti; those refused.

        They are verified like files. Of a managed one and a file of the same jti the higher
        generation counts, and the managed one where they are equal.
        """
        if self.trust.to_bytes() != self._verified_with:
            self.load()  # what other keys signed, or keys that are gone, is judged again
        with self._records.batch():
            self._verify_managed(tokens)
        self._join()
        _tell(self._managed_refused)
        return self._managed_refused

    def managed(self) -> Mapping[str, Held]:
        """The licenses that the control plane delivers, for `put_back`."""
        return self._managed

    def put_back(self, managed: Mapping[str, Held]) -> None:
        """Undo a `set_managed` that came to nothing.

        Not by delivering the old ones again: they may be of a generation that is on record as
        replaced by now.
        """
        self._managed = dict(managed)
        self._managed_refused = ()
        self._join()

    def set_leases(self, ends_ns: Mapping[int, int], denied: Collection[int] = ()) -> None:
        """The leases of managed licenses: license number -> end in CLOCK_BOOTTIME, in ns.

        One that is not named has no lease. `denied` are those that the control plane refuses to
        lease, which ends also those that would go on without a lease (failure_mode "open").
        Takes effect with the next `write`.
        """
        self._leases = MappingProxyType(dict(ends_ns))
        self._denied = frozenset(denied)

    def _verify_managed(self, tokens: Mapping[str, bytes], *, again: bool = False) -> None:
        managed: dict[str, Held] = {}
        refused: list[Refused] = []
        for jti, text in tokens.items():
            known = self._managed.get(jti)
            if known is not None and known.text == text and not again:
                managed[jti] = known
                continue
            try:
                found = verify_license(text, self.trust)
                if found.jti != jti:
                    raise TokenError(Refusal.BAD_VALUE, f"its jti is {found.jti}, not {jti}")
                filed = self._filed.get(jti)
                if filed is None or filed.license.generation <= found.generation:
                    self._accept(found, confirmed=True)
                managed[jti] = Held(found, None, text)
            except (TokenError, StoreError) as error:
                refused.append(refusal_of(f"{jti} (control plane)", error))
        self._managed = managed
        self._managed_refused = tuple(refused)
        self._verified_with = self.trust.to_bytes()

    def _join(self) -> None:
        held = dict(self._filed)
        for jti, one in self._managed.items():
            filed = held.get(jti)
            if filed is None or filed.license.generation <= one.license.generation:
                held[jti] = one
        self.held = held
        self.refused = (*self._filed_refused, *self._managed_refused)

    # --- what this host is

    def set_labels(self, labels: Mapping[str, str]) -> None:
        """The host's labels from now on. Takes effect with the next `write`."""
        self.host = replace(self.host, labels=MappingProxyType(dict(labels)))

    def set_facts(self, facts: Mapping[str, str]) -> None:
        """The host's posture from now on. Takes effect with the next `write`."""
        self.host = replace(self.host, facts=MappingProxyType(dict(facts)))

    # --- judgement

    def judge(self, license: License) -> Judgement:
        """The state of a license on this host now."""
        boottime_ns = _boottime_ns()
        now_ns = self._clock.now_ns(boottime_ns)
        lease_end_ns = self._lease_end_ns(license)
        lease_end_s: float | None = math.inf
        if lease_end_ns is not None:
            lease_end_s = (now_ns + lease_end_ns - boottime_ns) / 1e9 if lease_end_ns else None
        return judge(
            license,
            now_ns / 1e9,
            self.host,
            revoked=self.revocation(license) is not None,
            earliest_s=self._clock.earliest_ns(boottime_ns) / 1e9,
            lease_end_s=lease_end_s,
        )

    def _lease_end_ns(self, license: License) -> int | None:
        """When the lease of a license ends, grace included; 0: it has none; None: needs none."""
        held = self.held.get(license.jti)
        if held is None or not held.managed:
            return None
        if license.number in self._denied:
            return 0
        if license.failure_mode == "open":
            return None
        end_ns = self._leases.get(license.number)
        return 0 if end_ns is None else end_ns + license.grace_s * 1_000_000_000

    # --- conditions

    def entitlements(self, license: License, host: HostFacts | None = None) -> Entitlements:
        """The entitlements of a license by their conditions, now; on this host or another."""
        boottime_ns = _boottime_ns()
        host = host or self.host
        return judge_entitlements(
            license,
            host.labels,
            host.facts,
            self._clock.now_ns(boottime_ns) / 1e9,
            self._clock.earliest_ns(boottime_ns) / 1e9,
        )

    def withheld(self) -> frozenset[tuple[str, str]]:
        """(license id, resource) of the entitlements that a policy must leave out now.

        Of a license of which conditions leave nothing there is none: its slot grants nothing.
        """
        return frozenset(
            (one.license.jti, resource)
            for one in self.held.values()
            for resource in self._withheld_of(one.license)
        )

    def _withheld_of(self, license: License) -> frozenset[str]:
        found = self.entitlements(license)
        return frozenset() if found.none_left else found.failing

    def settle(self, withheld: AbstractSet[tuple[str, str]]) -> None:
        """Say what the tables in the kernel leave out.

        A license that granted nothing is given back only when they leave out all that must be.
        """
        self._left_out = frozenset(withheld)

    def _condition_end_ns(self, license: License, boottime_ns: int) -> int | None:
        """Up to when conditions are taken to hold, by what is known now; None: it has none."""
        if not has_conditions(license):
            return None
        end_ns = boottime_ns + ATTESTED_NS
        ends_s = set(self.entitlements(license).ends_s)
        first_s = min((end_s for end_s in ends_s if end_s is not None), default=None)
        if first_s is not None:
            hours_end_ns = self._clock.deadline_boottime_ns(first_s)
            # Others go on: the daemon takes away this one, and the kernel all where it is dead.
            end_ns = min(end_ns, hours_end_ns + (OTHERS_SLACK_NS if len(ends_s) > 1 else 0))
        return end_ns

    # --- the kernel

    def slot_of(self, license: License) -> SlotValues:
        """What the kernel should hold for a license now."""
        state = self.judge(license).state
        if state is LicenseState.VALID and self.all_or_nothing and self._withheld_of(license):
            state = LicenseState.CONDITION
        return slot_values(
            state,
            self._clock.start_boottime_ns(license.not_before_s),
            self._clock.deadline_boottime_ns(license.expires_at_s),
            lease_end_ns=self._lease_end_ns(license),
            condition_end_ns=self._condition_end_ns(license, _boottime_ns()),
        )

    def write(self, table: LicenseTable) -> bool:
        """Bring the kernel's table up to date; True if some open sockets are dead by that."""
        died = False
        for one in self.held.values():
            died |= self.write_one(table, one.license)
        known = {one.license.number for one in self.held.values()}
        for number in table.numbers():
            if number not in known:
                died |= table.set(number, LicenseState.REVOKED.reason, 0, NANOSECONDS_MAX)
        self._written = {number: self._written[number] for number in known}
        return died

    def write_one(self, table: LicenseTable, license: License) -> bool:
        """Bring the slot of one license up to date; True if some open sockets are dead by that."""
        values = self.slot_of(license)
        before = table.get(license.number)
        granted = before is not None and before.state is Reason.LICENSED
        if values.state is Reason.LICENSED and not granted:
            left_out = {resource for jti, resource in self._left_out if jti == license.jti}
            if not self._withheld_of(license) <= left_out:
                values = replace(values, state=Reason.CONDITION)
        self._written[license.number] = values
        died = table.set(
            license.number,
            values.state,
            values.not_before_ns,
            values.not_after_ns,
            values.end_reason,
        )
        if granted and before is not None:  # an end that was moved into the past
            died |= before.not_after_ns > _boottime_ns() >= values.not_after_ns
        return died

    def next_end_ns(self, after_ns: int) -> int | None:
        """The first license end after `after_ns`, both in trusted unix ns; it may be past.

        The ends of leases and conditions are those of the last `write`.
        """
        ends = [one.license.expires_at_s * 1_000_000_000 for one in self.held.values()]
        clock = self._clock.state
        ends += (
            # Not `now_ns`, which knows no time before the last reading.
            clock.now_ns + values.not_after_ns - clock.boottime_ns
            for values in self._written.values()
            if values.state is Reason.LICENSED and values.end_reason is not Reason.EXPIRED
        )
        return min((end for end in ends if end > after_ns), default=None)

    def store(self, text: bytes) -> tuple[License, Path, bool]:
        """Verify a license and keep its file; False in the third place if it was there.

        Raises:
            TokenError: it does not verify, with a named refusal.
            StoreError: what this host has seen before speaks against it (`LicenseRecords.accept`).
        """
        found = verify_license(text, self.trust)
        self._accept(found, confirmed=True)
        path = self._folder / f"{file_name(found.jti)}.lic"
        held = self._filed.get(found.jti)
        if held is not None and held.file is not None and held.text == text:
            return found, held.file, False
        write_durably(path, text)
        if held is not None and held.file is not None and held.file != path:
            held.file.unlink(missing_ok=True)
        self._filed[found.jti] = Held(found, path, text)
        self._join()
        return found, path, True

    def forget(self, jti: str) -> bool:
        """Remove a license's file; False if there was none. A managed license has none."""
        held = self._filed.pop(jti, None)
        if held is None or held.file is None:
            return False
        held.file.unlink(missing_ok=True)
        self._join()
        return True

    def _files(self, suffix: str) -> Iterator[Path]:
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return
        for name in names:
            if name.endswith(suffix) and not name.startswith("."):
                yield self._folder / name


def _tell(refused: Sequence[Refused]) -> None:
    for problem in refused:
        _log.warning("%s refused: %s (%s)", problem.file, problem.detail, problem.reason)


def _boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _as_revocation(statement: Statement) -> Revocation:
    return Revocation(
        jti=statement.id,
        issuer=statement.issuer,
        audience=AUDIENCE,
        issued_at_s=statement.at_s,
        license=statement.license,
        action=RevocationAction(statement.action),
        generation=statement.generation,
        reason=statement.reason,
    )


def refusal_of(name: str, error: Exception) -> Refused:
    """A refused file as status and errors name it."""
    if isinstance(error, TokenError):
        return Refused(name, str(error.refusal), str(error.detail), str(error.next_step))
    if isinstance(error, LicenseNotAccepted):
        return Refused(name, error.refusal, str(error), "")
    return Refused(name, type(error).__name__, str(error), "")


def file_name(jti: str) -> str:
    """A file name for a license id: what is not plain is written as %XX."""
    return "".join(
        character
        if character.isascii() and (character.isalnum() or character in "-_.")
        else "".join(f"%{byte:02X}" for byte in character.encode())
        for character in jti
    ).lstrip(".")[:200]


def write_durably(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: temporary, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    fresh.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
