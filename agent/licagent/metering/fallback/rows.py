# SPDX-License-Identifier: Apache-2.0
"""What the fallback meter gives: the fields of the kernel's sheets, plus what it knows better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from licagent.domain.usage import Meter, Quality


@dataclass(frozen=True, slots=True)
class FallbackWho:
    """The owner of a row; the first ten fields are those of the kernel's rows."""

    pid: int
    """0: several processes that lived and died between two samples."""
    start_ns: int
    """CLOCK_BOOTTIME at which the process began; 0 where `pid` is 0, or unknown."""
    uid: int
    gid: int
    cgroup: int
    """Id of the cgroup (inode of its folder); 0: not known."""
    device: int
    """The executable's, as the kernel numbers it (major << 20 | minor); 0: not known."""
    inode: int
    path: int
    """Always 0: which paths the policy names is not known here."""
    digest: int
    """Always 0."""
    comm: str
    executable: str = ""
    """Its path; "[name]" for a kernel thread, "" where it is not known."""
    cgroup_path: str = ""
    """From the root of the hierarchy, "/system.slice/x.service"; "" where it is not known."""


@dataclass(frozen=True, slots=True)
class FallbackRow:
    """Compute and storage input and output of one owner within a sheet."""

    who: FallbackWho
    cpu_ns: int
    read_bytes: int
    write_bytes: int
    cancelled_bytes: int
    memory_byte_ms: int
    processes: int


@dataclass(frozen=True, slots=True)
class FallbackSheet:
    """What was counted in one sheet; has the fields of `kernel.usage.Sheet`."""

    number: int
    opened_ns: int
    closed_ns: int
    work: tuple[FallbackRow, ...]
    quality: Mapping[Meter, Quality]
    """Of CPU_NS, READ_BYTES, WRITE_BYTES, CANCELLED_BYTES, MEMORY_BYTE_MS and PROCESSES."""
    baseline: bytes
    """For the ledger's mark "fallback", in the frame that holds this sheet's records."""
    lost: int = 0
    """How many times the kernel dropped exit records: an unknown number of dead threads have
    lost what they used since the sample before."""
    flows: tuple[()] = ()
    spilled_work: FallbackRow | None = None
    spilled_flows: tuple[()] = ()
