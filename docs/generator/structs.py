# SPDX-License-Identifier: Apache-2.0
"""Sizes of the structs in bpf/licagent.h, bpf/layout/ and of the maps in bpf/, from the text."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BPF: Final = Path(__file__).resolve().parents[2] / "bpf"

_WIDTHS: Final = {"char": 1, "__u8": 1, "__u16": 2, "__u32": 4, "int": 4, "__u64": 8}
_TYPES: Final = {
    "HASH": "hash",
    "ARRAY": "array",
    "PERCPU_HASH": "per-CPU hash",
    "PERCPU_ARRAY": "per-CPU array",
    "LRU_HASH": "LRU hash",
    "LPM_TRIE": "LPM trie",
    "RINGBUF": "ring buffer",
    "SK_STORAGE": "socket storage",
    "TASK_STORAGE": "task storage",
    "QUEUE": "queue",
}


@dataclass(frozen=True, slots=True)
class MapDefinition:
    """A map as bpf/maps.h defines it."""

    name: str
    kind: str
    key_bytes: int
    value_bytes: int
    max_entries: int  # of a ring buffer: bytes


@dataclass(frozen=True, slots=True)
class _Layout:
    size: int
    alignment: int


def _without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)


def _constants(text: str) -> dict[str, int]:
    found = {
        name: int(value, 0)
        for name, value in re.findall(r"#define (\w+) (0x[0-9a-f]+|\d+)U?\b", text)
    }
    found |= {name: int(value) for name, value in re.findall(r"\b(LIC_\w+) = (\d+)", text)}
    return found


def _header() -> str:
    """What the programs and the daemon agree on: bpf/licagent.h and its parts."""
    files = [BPF / "licagent.h", *sorted(BPF.glob("layout/*.h"))]
    return "".join(file.read_text(encoding="utf-8") for file in files)


def _layouts() -> dict[str, _Layout]:
    text = _without_comments(_header()) + sources()
    constants = _constants(text)
    known = {name: _Layout(width, width) for name, width in _WIDTHS.items()}
    struct = r"struct (\w+) \{(.*?)\n\}(?: __attribute__\(\(aligned\((\d+)\)\)\))?;"
    for name, body, aligned in re.findall(struct, text, re.DOTALL):
        fields = re.findall(r"(?:struct )?(\w+) (\w+)((?:\[\w+\])*);", body)
        if any(kind not in known for kind, _field, _counts in fields):
            continue  # of the kernel's, not of a map
        size, alignment = 0, int(aligned or 1)
        for kind, _field, counts in fields:
            each = known[kind]
            size = -(-size // each.alignment) * each.alignment
            dimensions = re.findall(r"\w+", counts)
            size += each.size * math.prod(int(constants.get(one, one)) for one in dimensions)
            alignment = max(alignment, each.alignment)
        known[name] = _Layout(-(-size // alignment) * alignment, alignment)
    return known


def struct_sizes() -> dict[str, int]:
    """Bytes of each struct, by its name in C."""
    return {name: each.size for name, each in _layouts().items() if name.startswith("lic_")}


def sources() -> str:
    """Everything that defines maps: bpf/maps.h first, then what one object has for itself."""
    own = (BPF / f"{name}.h" for name in ("open_sockets", "accounts", "work"))
    files = [BPF / "maps.h", *sorted(BPF.glob("*.bpf.c")), *own]
    return _without_comments("".join(file.read_text(encoding="utf-8") for file in files))


def map_definitions() -> tuple[MapDefinition, ...]:
    """Every map, in the order of the sources."""
    text = sources()
    layouts = _layouts()
    constants = _constants(_header())
    found = []
    for body, name in re.findall(r"\nstruct \{(.*?)\n\} (\w+) SEC\(\"\.maps\"\);", text, re.DOTALL):
        kind = re.search(r"BPF_MAP_TYPE_(\w+)", body)
        entries = re.search(r"max_entries, ([^)]+)\)", body)
        if kind is None:
            raise LookupError(f"map {name} has no type")
        found.append(
            MapDefinition(
                name,
                _TYPES[kind[1]],
                _part(body, "key", layouts),
                _part(body, "value", layouts),
                _product(entries[1], constants) if entries else 0,
            )
        )
    return tuple(found)


def _part(body: str, part: str, layouts: dict[str, _Layout]) -> int:
    if named := re.search(rf"__type\({part}, (?:struct )?(\w+)\)", body):
        return layouts[named[1]].size
    size = re.search(rf"__uint\({part}_size, (\d+)\)", body)
    return int(size[1]) if size else 0


def _product(text: str, constants: dict[str, int]) -> int:
    result = 1
    for factor in text.split("*"):
        word = factor.strip()
        result *= constants[word] if word in constants else int(word)
    return result
