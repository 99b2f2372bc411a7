# SPDX-License-Identifier: Apache-2.0
"""Writing a compiled policy: beside the old one, then one word, then the old one goes."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator
from typing import Final

from licagent.domain.rulebook import RuleChange, amend_order
from licagent.domain.tables import (
    SERVICE_CLASS,
    Network,
    PortFlag,
    PortPrefix,
    Protocol,
    Rule,
    Shape,
    Tables,
)
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.control import ControlWord
from licagent.kernel.enforcement_structs import Policy
from licagent.kernel.maps import Map
from licagent.kernel.numbers import MAX_SHAPES, PolicyFlag
from licagent.kernel.rcu import wait_for_readers

_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")
_NET4: Final = struct.Struct("=II4s")
_NET6: Final = struct.Struct("=II16s")
_PORT_HEAD: Final = struct.Struct("=IIIBx")
_PORT_VALUE: Final = struct.Struct("=II")
_RULE_KEY: Final = struct.Struct("=8I")
_RULE_VALUE: Final = struct.Struct("=6I")

_PORT_FIXED_BITS: Final = 80
_WORDS: Final = 1024  # 65,536 ports / 64
_GENERATIONS: Final = 2**32

_GENERATION_AT: Final = {"networks4": 4, "networks6": 4, "ports": 4, "rules": 0}
"""Where in a map's key the generation stands; after the prefix length in those that are tries."""


class TableWriter:
    """Writes policies into the kernel's tables."""

    def __init__(self, pins: PinFolder, control: ControlWord) -> None:
        self._control = control
        self._maps = {name: Map(pins.maps / name) for name in (*_GENERATION_AT, "policies")}
        self._policies = self._maps["policies"]
        self._service_ports = Map(pins.maps / "service_ports")

    def switch(
        self,
        tables: Tables,
        slot_of: Callable[[int], int],
        *,
        enforce: bool,
        keep_existing: bool,
    ) -> int:
        """Put `tables` in force and return its generation.

        Until the last step the old policy decides everything; after it, the new one does.

        Raises:
            BpfError: a table is full (E2BIG) or a write failed; the old policy stays in force.
        """
        old = self._control.generation
        # 2 after the last one, not 1: the two must not share a slot of `policies`.
        new = (old + 1) % _GENERATIONS or 2
        self._purge(keep=old)
        try:
            self._write(tables, new, slot_of, enforce=enforce, keep_existing=keep_existing)
        except BaseException:
            self._purge(keep=old)
            raise
        self._control.switch(new, _flags(tables, enforce=enforce, keep_existing=keep_existing))
        # A program may still run by the old generation: its entries go when none can.
        wait_for_readers()
        self._purge(keep=new)
        return new

    def amend(self, change: RuleChange, slot_of: Callable[[int], int]) -> None:
        """Change single rules of the generation in force.

        One after the other, in the order of `amend_order`: whatever the kernel decides meanwhile,
        the old policy or the new one decides so. On return no program looks at a rule that is
        gone. Tags of sockets hold what was decided before; the caller ends that by giving the
        licenses of `change.licenses` a new epoch (LicenseTable.renew), after this and not before:
        a program that had found an old rule has read its license's epoch by then, too.

        Raises:
            BpfError: a write failed; the rules are again as they were.
        """
        generation = self._control.generation
        rules = self._maps["rules"]
        written, removed = amend_order(change)
        try:
            for rule in written:
                rules.update(*_rule(rule, generation, slot_of))
            for rule in removed:
                rules.delete(_rule(rule, generation, slot_of)[0])
        except BaseException:
            for before in (*removed, *(before for before, _after in change.changed)):
                rules.update(*_rule(before, generation, slot_of))
            for rule in change.added:
                rules.delete(_rule(rule, generation, slot_of)[0])
            raise
        wait_for_readers()

    def _write(
        self,
        tables: Tables,
        generation: int,
        slot_of: Callable[[int], int],
        *,
        enforce: bool,
        keep_existing: bool,
    ) -> None:
        entries = self.entries(
            tables, generation, slot_of, enforce=enforce, keep_existing=keep_existing
        )
        for name, rows in entries.items():
            if name == "policies":
                # After the tables of which it speaks, and before the word that names it.
                self._service_ports.update_many(_service_bits(tables.ports, generation))
            self._maps[name].update_many(rows)

    def entries(
        self,
        tables: Tables,
        generation: int,
        slot_of: Callable[[int], int],
        *,
        enforce: bool,
        keep_existing: bool,
    ) -> dict[str, Iterator[tuple[bytes, bytes]]]:
        """What each map holds of `tables`, in the order in which they are written."""
        policy = Policy()
        policy.generation = generation
        policy.flags = _flags(tables, enforce=enforce, keep_existing=keep_existing)
        policy.shape_count = len(tables.shapes)
        for index, shape in enumerate(tables.shapes[:MAX_SHAPES]):
            policy.shapes[index] = int(shape)
        value = ctypes.string_at(ctypes.addressof(policy), ctypes.sizeof(policy))
        return {
            "networks4": (_network4(each, generation) for each in tables.networks if _is4(each)),
            "networks6": (
                _network6(each, generation) for each in tables.networks if not _is4(each)
            ),
            "ports": (_port(port, generation) for port in tables.ports),
            "rules": (_rule(rule, generation, slot_of) for rule in tables.rules),
            "policies": iter([(_U32.pack(generation & 1), value)]),
        }

    def held(self, name: str, generation: int) -> list[tuple[bytes, bytes]]:
        """What a map holds of a generation, as the kernel says."""
        if name == "policies":
            key = _U32.pack(generation & 1)
            value = self._policies.lookup(key)
            return [] if value is None else [(key, value)]
        at, wanted = _GENERATION_AT[name], _U32.pack(generation)
        return [
            (key, value) for key, value in self._maps[name].items() if key[at : at + 4] == wanted
        ]

    def _purge(self, keep: int) -> None:
        """Remove the entries of every generation but one, also what a crash left behind."""
        wanted = _U32.pack(keep)
        for name, at in _GENERATION_AT.items():
            table = self._maps[name]
            stale = [key for key in table.keys() if key[at : at + 4] != wanted]  # noqa: SIM118
            table.delete_many(stale)

    def close(self) -> None:
        """Close the maps."""
        for table in self._maps.values():
            table.close()
        self._service_ports.close()


def _flags(tables: Tables, *, enforce: bool, keep_existing: bool) -> int:
    flags = 0
    enforced = [port for port in tables.ports if enforce and port.flags & PortFlag.ENFORCE]
    if enforced:
        flags |= PolicyFlag.ENFORCE
    if any(port.class_number != SERVICE_CLASS for port in enforced):
        flags |= PolicyFlag.ENFORCES_NETWORKS
    if tables.networks:
        flags |= PolicyFlag.HAS_NETWORKS
    if any(port.class_number == SERVICE_CLASS for port in tables.ports):
        flags |= PolicyFlag.HAS_SERVICES
    if keep_existing:
        flags |= PolicyFlag.KEEP_EXISTING
    if any(shape & Shape.SCOPE for shape in tables.shapes):
        flags |= PolicyFlag.HAS_SCOPES
    return flags


def _is4(network: Network) -> bool:
    return network.family == 4


def _network4(network: Network, generation: int) -> tuple[bytes, bytes]:
    key = _NET4.pack(32 + network.prefix_length, generation, network.address.to_bytes(4, "big"))
    return key, _U32.pack(network.class_number)


def _network6(network: Network, generation: int) -> tuple[bytes, bytes]:
    key = _NET6.pack(32 + network.prefix_length, generation, network.address.to_bytes(16, "big"))
    return key, _U32.pack(network.class_number)


def _port(port: PortPrefix, generation: int) -> tuple[bytes, bytes]:
    head = _PORT_HEAD.pack(
        _PORT_FIXED_BITS + port.bits, generation, port.class_number, int(port.protocol)
    )
    return head + port.port.to_bytes(2, "big"), _PORT_VALUE.pack(port.resource, int(port.flags))


def _rule(rule: Rule, generation: int, slot_of: Callable[[int], int]) -> tuple[bytes, bytes]:
    key = rule.key
    slots = [slot_of(number) for number in rule.licenses]
    return (
        _RULE_KEY.pack(
            generation, key.resource, key.path, key.digest, key.scope, key.uid, key.gid, 0
        ),
        _RULE_VALUE.pack(rule.number, len(slots), *(slots + [0] * (4 - len(slots)))),
    )


def _service_bits(ports: tuple[PortPrefix, ...], generation: int) -> Iterator[tuple[bytes, bytes]]:
    """The words of `service_ports` for this generation, zeros included."""
    words = [0] * (2 * _WORDS)
    for port in ports:
        if port.class_number != SERVICE_CLASS:
            continue
        if port.protocol is Protocol.TCP:
            base = 0
        elif port.protocol is Protocol.UDP:
            base = _WORDS
        else:
            continue
        for number in range(port.port, port.port + (1 << (16 - port.bits))):
            words[base + (number >> 6)] |= 1 << (number & 63)
    first = (generation & 1) * 2 * _WORDS
    for index, word in enumerate(words):
        yield _U32.pack(first + index), _U64.pack(word)
