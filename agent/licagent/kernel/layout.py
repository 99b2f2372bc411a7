# SPDX-License-Identifier: Apache-2.0
"""The structs of bpf/licagent.h by name, and what the pinned maps hold of them.

tests/unit/kernel/test_layout.py compares sizes, offsets and enumerations with the BTF of the
built objects, and `licagent.kernel.maps.check_layout` with the kernel's maps when the daemon opens
them.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure
from typing import Final

from licagent.kernel.enforcement_structs import (
    Cgroup,
    Content,
    ContentKey,
    Control,
    CounterKey,
    Event,
    Guard,
    GuardedKey,
    Half,
    Known,
    License,
    PathKey,
    Policy,
    Process,
    Repeat,
    RepeatKey,
    ScopeKey,
    SocketRecord,
    Tag,
)
from licagent.kernel.usage_structs import (
    Account,
    FlowCount,
    FlowKey,
    Meter,
    Owner,
    SheetTimes,
    Taken,
    Work,
    WorkKey,
)

SCHEMA: Final = 3
"""LIC_SCHEMA: version of all pinned maps."""

STRUCTS: Final[dict[str, type[Structure]]] = {
    "lic_control": Control,
    "lic_guard": Guard,
    "lic_guarded_key": GuardedKey,
    "lic_policy": Policy,
    "lic_license": License,
    "lic_path_key": PathKey,
    "lic_content_key": ContentKey,
    "lic_content": Content,
    "lic_known": Known,
    "lic_process": Process,
    "lic_cgroup": Cgroup,
    "lic_scope_key": ScopeKey,
    "lic_half": Half,
    "lic_tag": Tag,
    "lic_counter_key": CounterKey,
    "lic_repeat_key": RepeatKey,
    "lic_repeat": Repeat,
    "lic_event": Event,
    "lic_sheet": SheetTimes,
    "lic_flow_key": FlowKey,
    "lic_flow_count": FlowCount,
    "lic_meter": Meter,
    "lic_owner": Owner,
    "lic_work_key": WorkKey,
    "lic_work": Work,
    "lic_account": Account,
    "lic_taken": Taken,
    "lic_socket_record": SocketRecord,
}
"""Struct name in BTF -> its mirror here."""

MAP_SIZES: Final[dict[str, tuple[int, int]]] = {
    "control": (4, ctypes.sizeof(Control)),
    "policies": (4, ctypes.sizeof(Policy)),
    "networks4": (12, 4),
    "networks6": (24, 4),
    "ports": (16, 8),
    "rules": (32, 24),
    "service_ports": (4, 8),
    "licenses": (4, ctypes.sizeof(License)),
    "paths": (ctypes.sizeof(PathKey), 4),
    "contents": (ctypes.sizeof(ContentKey), ctypes.sizeof(Content)),
    "processes": (4, ctypes.sizeof(Process)),
    "scope_names": (ctypes.sizeof(ScopeKey), 4),
    "cgroups": (8, ctypes.sizeof(Cgroup)),
    "tags": (4, ctypes.sizeof(Tag)),
    "counters": (ctypes.sizeof(CounterKey), 8),
    "repeats": (ctypes.sizeof(RepeatKey), ctypes.sizeof(Repeat)),
    "sheets": (4, ctypes.sizeof(SheetTimes)),
    "meters": (4, ctypes.sizeof(Meter)),
    "flows": (ctypes.sizeof(FlowKey), 4),
    "free_meters": (0, 4),
    "faults": (4, 8),
}
"""Bytes of key and value of each map that this package reads or writes."""
