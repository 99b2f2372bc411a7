# SPDX-License-Identifier: Apache-2.0
"""Python's picture of the kernel's structs and numbers against what the compiler makes of them.

bpf/licagent.h is compiled with a variable of each of its types, so that all of them are in the
BTF, also those that only live in a program's registers. The built objects are compared as well:
they are what will be loaded.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import struct
import subprocess
from enum import IntEnum
from pathlib import Path
from typing import Final

import pytest
from tests.kernel.harness.btf import Btf, BtfStruct

from licagent.domain import tables as domain
from licagent.domain.reason import REASON_ERRNO, Reason, Verdict
from licagent.kernel import layout, numbers, tables
from licagent.kernel.build import object_folder, source_folder
from licagent.kernel.hooks import BTF_OBJECTS, CORE_OBJECTS, HOOKS, LSM_HOOKS, LSM_OBJECTS

HEADER: Final = "".join(
    path.read_text(encoding="utf-8")
    for path in (source_folder() / "licagent.h", *sorted(source_folder().glob("layout/*.h")))
)
STRUCT_NAMES: Final = re.findall(r"^struct (lic_\w+) \{", HEADER, re.MULTILINE)
ENUM_NAMES: Final = re.findall(r"^enum (lic_\w+) \{", HEADER, re.MULTILINE)
DEFINES: Final = dict(re.findall(r"^#define (LIC_\w+) (\w+)", HEADER, re.MULTILINE))

PACKED: Final = frozenset(
    {"lic_net4_key", "lic_net6_key", "lic_port_key", "lic_port", "lic_rule_key", "lic_rule"}
)
"""Structs of which Python writes very many, by struct.pack; see the tests at the end."""

KERNEL_ONLY: Final = frozenset({"lic_clock"})
"""Structs that Python neither reads nor writes."""

ENUMS: Final[dict[str, tuple[type[IntEnum | domain.Shape], str]]] = {
    "lic_protocol": (domain.Protocol, "LIC_PROTO_"),
    "lic_shape": (domain.Shape, "LIC_SHAPE_"),
    "lic_verdict": (Verdict, "LIC_VERDICT_"),
    "lic_reason": (Reason, "LIC_REASON_"),
    "lic_port_flag": (domain.PortFlag, "LIC_PORT_"),
    "lic_policy_flag": (numbers.PolicyFlag, "LIC_POLICY_"),
    "lic_scope_kind": (domain.ScopeKind, "LIC_SCOPE_"),
    "lic_tag_kind": (numbers.TagKind, "LIC_TAG_"),
    "lic_event_kind": (numbers.EventKind, "LIC_EVENT_"),
    "lic_hook": (numbers.Hook, "LIC_HOOK_"),
    "lic_guarded": (numbers.Guarded, "LIC_GUARDED_"),
    "lic_fault": (numbers.Fault, "LIC_FAULT_"),
    "lic_direction": (numbers.Direction, "LIC_DIRECTION_"),
}

NOT_NUMBERS: Final = {"LIC_FAULT_COUNT"}
"""Sizes of maps, not members."""

NOT_KERNEL: Final = {"HOST"}
"""Members of Python alone: the shape of a rule that names no selector is 0."""


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> Btf:
    """BTF of everything in licagent.h."""
    clang = shutil.which("clang")
    if clang is None:
        pytest.skip("clang is not installed; ./dev setup does it")
    folder = tmp_path_factory.mktemp("layout")
    lines = ["#include <linux/types.h>", '#include "licagent.h"']
    lines += [f"struct {name} a_{name};" for name in STRUCT_NAMES]
    lines += [f"enum {name} an_{name};" for name in ENUM_NAMES]
    source = folder / "all.c"
    source.write_text("\n".join(lines) + "\n")
    target = folder / "all.o"
    sources = source_folder()
    flags = [f"-I{path}" for path in Path("/usr/include").glob("*-linux-gnu")]
    flags += [f"-I{sources}", "-g", "-O2", "-target", "bpf"]
    subprocess.run([clang, *flags, "-c", source, "-o", target], check=True)
    return Btf.read(target)


OBJECTS: Final = [
    object_folder() / f"{name}.bpf.o"
    for name in (*CORE_OBJECTS, *BTF_OBJECTS, *LSM_OBJECTS, "maps")
]


def _as_btf(mirror: type[ctypes.Structure]) -> BtfStruct:
    members = {}
    for name, *_ in mirror._fields_:
        field = getattr(mirror, name)
        members[name] = (field.offset, field.size)
    return BtfStruct(ctypes.sizeof(mirror), members)


def test_every_struct_of_the_header_is_known_to_python() -> None:
    known = layout.STRUCTS.keys() | PACKED | KERNEL_ONLY

    assert set(STRUCT_NAMES) == known


@pytest.mark.parametrize("name", layout.STRUCTS)
def test_a_mirror_has_the_sizes_and_offsets_of_its_struct(name: str, header: Btf) -> None:
    assert _as_btf(layout.STRUCTS[name]) == header.structs[name]


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.name)
def test_the_built_objects_are_of_this_header(path: Path, header: Btf) -> None:
    assert path.exists(), "not built: make -C bpf"
    built = Btf.read(path).structs
    shared = built.keys() & header.structs.keys()

    assert shared, f"{path.name} names none of our structs"
    for name in shared:
        assert built[name] == header.structs[name], f"{name} in {path.name}: make -C bpf"


def test_every_enumeration_of_the_header_is_known_to_python() -> None:
    assert set(ENUM_NAMES) == ENUMS.keys()


@pytest.mark.parametrize("name", ENUMS)
def test_an_enumeration_has_the_numbers_of_the_header(name: str, header: Btf) -> None:
    mirror, prefix = ENUMS[name]
    kernel = {
        key.removeprefix(prefix): value
        for key, value in header.enums[name].items()
        if key not in NOT_NUMBERS
    }
    python = {member.name: int(member) for member in mirror if member.name not in NOT_KERNEL}

    assert python == kernel


def test_the_lengths_and_wildcards_of_the_header() -> None:
    found = {name: int(value.removesuffix("U"), 0) for name, value in DEFINES.items()}

    assert found["LIC_SCHEMA"] == layout.SCHEMA
    assert found["LIC_ANY_ID"] == domain.ANY_ID
    assert found["LIC_ANY_OWNER"] == domain.ANY_OWNER
    assert found["LIC_FAILSAFE_RESOURCE"] == domain.FAILSAFE_RESOURCE
    assert found["LIC_SERVICE_CLASS"] == domain.SERVICE_CLASS
    assert found["LIC_RULE_LICENSES"] == domain.MAX_LICENSES_PER_RULE
    assert found["LIC_MAX_SHAPES"] == numbers.MAX_SHAPES
    assert found["LIC_MAX_SCOPES"] == numbers.MAX_SCOPES
    assert found["LIC_NAME_LEN"] == numbers.NAME_LEN
    assert found["LIC_SCOPE_NAME_LEN"] == numbers.SCOPE_NAME_LEN


def test_every_combination_of_selectors_has_a_place_in_the_kernel() -> None:
    assert max(shape.value for shape in domain.Shape) * 2 <= numbers.MAX_SHAPES


def test_the_errno_of_a_reason_is_the_same_in_c_and_python() -> None:
    text = (source_folder() / "report.h").read_text(encoding="utf-8")
    body = text[text.index("int reason_errno(") :]
    body = body[: body.index("\n}")]
    found: dict[str, int] = {}
    waiting: list[str] = []
    for case, number in re.findall(r"case LIC_REASON_(\w+):|return (\d+);", body):
        if case:
            waiting.append(case)
            continue
        found |= dict.fromkeys(waiting, int(number))
        waiting.clear()
    otherwise = int(re.findall(r"default:\s+return (\d+);", body)[0])

    assert found.items() <= {reason.name: number for reason, number in REASON_ERRNO.items()}.items()
    for reason, number in REASON_ERRNO.items():
        assert found.get(reason.name, otherwise) == number, reason


def test_every_program_of_the_objects_has_a_hook() -> None:
    sources = {path.name.removesuffix(".bpf.c") for path in source_folder().glob("*.bpf.c")}
    programs = {
        (path.name.removesuffix(".bpf.c"), name)
        for path in source_folder().glob("*.bpf.c")
        for name in re.findall(
            r"^SEC\(\"[^\"]+\"\)\nint (?:BPF_PROG\()?(licagent_\w+)",
            path.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    }

    assert programs == {(hook.object, hook.program) for hook in (*HOOKS, *LSM_HOOKS)}
    plain = {name for name in sources if name.endswith("_plain")}
    assert sources - plain == {*CORE_OBJECTS, *BTF_OBJECTS, *LSM_OBJECTS, "maps"}
    assert {name.removesuffix("_plain") for name in plain} <= {*CORE_OBJECTS, "families"}


def _unpack(data: bytes, found: BtfStruct) -> dict[str, bytes]:
    assert len(data) == found.size
    return {name: data[at : at + size] for name, (at, size) in found.members.items()}


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little" if struct.pack("=H", 1)[0] else "big")


def test_networks_are_packed_as_the_kernel_reads_them(header: Btf) -> None:
    key4, value = tables._network4(domain.Network(4, 0x0A000500, 24, 7), 9)
    key6, _ = tables._network6(domain.Network(6, 0x20010DB8 << 96, 32, 7), 9)
    four = _unpack(key4, header.structs["lic_net4_key"])
    six = _unpack(key6, header.structs["lic_net6_key"])

    assert (_number(four["prefix_bits"]), _number(four["generation"])) == (32 + 24, 9)
    assert four["address"] == bytes([10, 0, 5, 0])
    assert (_number(six["prefix_bits"]), _number(six["generation"])) == (32 + 32, 9)
    assert six["address"] == bytes([0x20, 1, 0x0D, 0xB8, *bytes(12)])
    assert _number(value) == 7


def test_ports_are_packed_as_the_kernel_reads_them(header: Btf) -> None:
    entry = domain.PortPrefix(5, domain.Protocol.UDP, 0x1900, 12, 77, domain.PortFlag.ENFORCE)
    packed, value = tables._port(entry, 9)
    key = _unpack(packed, header.structs["lic_port_key"])
    port = _unpack(value, header.structs["lic_port"])

    # what stands before the port counts whole: prefix_bits itself is not part of the prefix
    offset, _ = header.structs["lic_port_key"].members["port"]
    assert _number(key["prefix_bits"]) == (offset - 4) * 8 + 12
    assert (_number(key["generation"]), _number(key["class_number"])) == (9, 5)
    assert (_number(key["protocol"]), key["port"]) == (17, b"\x19\x00")
    assert (_number(port["resource"]), _number(port["flags"])) == (77, 1)


def test_rules_are_packed_as_the_kernel_reads_them(header: Btf) -> None:
    who = domain.RuleKey(3, path=4, digest=5, scope=6, uid=7, gid=8)
    entry = domain.Rule(11, who, (100, 200), "b", (), "f:1")
    packed, value = tables._rule(entry, 9, lambda number: number + 1)
    key = _unpack(packed, header.structs["lic_rule_key"])
    rule = _unpack(value, header.structs["lic_rule"])

    names = ("generation", "resource", "path", "digest", "scope", "uid", "gid", "reserved")
    assert [_number(key[name]) for name in names] == [9, 3, 4, 5, 6, 7, 8, 0]
    assert (_number(rule["number"]), _number(rule["license_count"])) == (11, 2)
    slots = [_number(rule["slots"][at : at + 4]) for at in range(0, 16, 4)]
    assert slots == [101, 201, 0, 0]
