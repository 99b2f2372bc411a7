# SPDX-License-Identifier: Apache-2.0
"""Values of earlier schemas as those of this one."""

from __future__ import annotations

import struct

import pytest

from licagent.kernel import migrate
from licagent.kernel.enforcement_structs import Process


@pytest.mark.parametrize("schema", [1, 2])
def test_a_process_of_an_earlier_schema_stays_what_it_was(schema: int) -> None:
    """Its layout in bpf/licagent.h until schema 2; the start of the process came with that."""
    exec_ns, start_ns = 0x123456789ABCDEF0, 77 if schema == 2 else 0
    old = struct.pack("=IIQQQIIQIIQ", 5, 6, exec_ns, 11, 12, 13, 1, 21, 22, 23, 24)
    if schema == 2:
        old += struct.pack("=Q", start_ns)

    found = Process.from_buffer_copy(migrate.process_of_2(old).ljust(80, b"\0"))

    assert found.holds(found.path) == 5
    assert found.holds(found.digest) == 6
    assert (found.exec_ns, found.inode, found.ctime_ns) == (exec_ns, 11, 12)
    assert (found.device, found.measured) == (13, 1)
    assert (found.allowed_ns, found.allowed_license) == (21, 22)
    assert (found.allowed_resource, found.allowed_pending) == (23, 24)
    assert found.start_ns == start_ns


def test_what_is_of_another_exec_is_no_number() -> None:
    found = Process(exec_ns=1 << 40 | 7)
    found.digest.exec_id, found.digest.number = 7, 3
    assert found.holds(found.digest) == 3
    found.digest.exec_id = 8
    assert found.holds(found.digest) == 0
