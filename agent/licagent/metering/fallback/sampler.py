# SPDX-License-Identifier: Apache-2.0
"""The meter for kernels whose own counting programs do not load (no BTF, or before 5.12).

It has the methods of `kernel.usage_meter.UsageMeter`, so whoever bills need not tell them apart:

    meter = FallbackMeter(boot_id=..., baseline=ledger.marks.get("fallback", b""))
    meter.begin()
    meter.collect()                                   # cheap enough for every interval
    sheet = meter.close_sheet()
    ledger.commit([... sheet.work ...], {"fallback": sheet.baseline})
    meter.discard(sheet.number)                       # not called: close_sheet() gives it again

Nothing is pinned in the kernel here: what a process used until the last commit is in the
baseline, so a daemon that was killed goes on from there for every process that still lives. What
ended while no daemon ran is in no process's line; the host's totals have it (unattributed).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from licagent.domain.usage import Meter, Quality
from licagent.metering.fallback.rows import FallbackRow, FallbackSheet, FallbackWho

ANSWER_WITHIN_S: Final = 60.0

_METERS: Final = MappingProxyType({meter.key: meter for meter in Meter})


class FallbackFailed(RuntimeError):
    """The collecting process does not start, or not again."""


class _Died(Exception):
    """It ended, or did not answer."""


class FallbackMeter:
    """psutil and taskstats in sheets, from a process of their own."""

    def __init__(self, *, boot_id: str, baseline: bytes = b"", wanted: str = "") -> None:
        """`baseline`: the mark "fallback" of the ledger; one of another boot is not used.

        `wanted` is "taskstats" or "psutil" for tests; "" takes the best that works.
        """
        self._boot_id = boot_id
        self._baseline = baseline
        self._wanted = wanted
        self._child: subprocess.Popen[bytes] | None = None
        self._unread = bytearray()
        self._state: dict[str, Any] = {}
        self._closed: FallbackSheet | None = None
        self._restarts = 0

    @property
    def quality(self) -> Mapping[Meter, Quality]:
        """How far each meter may be trusted on this host; empty before `begin`."""
        return _quality(self._state.get("quality", {}))

    @property
    def source(self) -> str:
        """ "taskstats" or "psutil": where the numbers come from; "" before `begin`."""
        return str(self._state.get("source", ""))

    @property
    def problem(self) -> str:
        """Why the source is not taskstats; "" if it is."""
        return str(self._state.get("problem", ""))

    @property
    def open_number(self) -> int:
        """Number of the open sheet; 0 before `begin`. Goes on across restarts in one boot."""
        return int(self._state.get("number", 0))

    def begin(self) -> None:
        """Start the collecting process. FallbackFailed where that does not work."""
        try:
            self._start()
        except _Died as error:
            self.close()
            raise FallbackFailed(f"the fallback meter does not start: {error}") from error

    def collect(self) -> None:
        """Add what live tasks used so far to the open sheet."""
        self._ask({"do": "collect"})

    def close_sheet(self) -> FallbackSheet:
        """Collect, close the sheet, open the next; a closed one not yet discarded comes again."""
        if self._closed is None:
            sheet = self._sheet("close")
            self._closed = sheet
            self._baseline = sheet.baseline
            self._restarts = 0
            self._state["number"] = sheet.number + 1
        return self._closed

    def discard(self, number: int) -> None:
        """The closed sheet of this number is on disk; another number is ignored."""
        if self._closed is not None and self._closed.number == number:
            self._closed = None

    def peek(self) -> FallbackSheet:
        """The open sheet after a collect; nothing changes."""
        return self._sheet("peek")

    def close(self) -> None:
        """End the collecting process. What it did not give is counted anew from the baseline."""
        child, self._child = self._child, None
        self._unread.clear()
        if child is None:
            return
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            child.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    # ------------------------------------------------------------------ inside

    def _sheet(self, do: str) -> FallbackSheet:
        answer = self._ask({"do": do})
        return FallbackSheet(
            number=answer["number"],
            opened_ns=answer["opened_ns"],
            closed_ns=answer["closed_ns"],
            work=tuple(_row(row) for row in answer["rows"]),
            quality=_quality(answer["quality"]),
            baseline=base64.b64decode(answer["baseline"]),
            lost=answer["lost"] + self._restarts,
        )

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Ask, and ask a new process once if this one is gone."""
        try:
            return self._exchange(request)
        except _Died:
            self._restarts += 1
        try:
            self._start()
            return self._exchange(request)
        except _Died as error:
            self.close()
            raise FallbackFailed(f"the fallback meter ended: {error}") from error

    def _start(self) -> None:
        self.close()
        # -P: the current folder is not searched for modules by a process that runs as root.
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "licagent.metering.fallback.collector"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            bufsize=0,
        )
        self._state = self._exchange(
            {
                "do": "begin",
                "boot_id": self._boot_id,
                "baseline": base64.b64encode(self._baseline).decode(),
                "wanted": self._wanted,
            }
        )
        self._baseline = base64.b64decode(self._state["baseline"])

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        child = self._child
        if child is None or child.stdin is None or child.stdout is None:
            raise _Died("it was not started")
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n")
            line = self._line(child.stdout.fileno(), time.monotonic() + ANSWER_WITHIN_S)
        except OSError as error:
            raise _Died(str(error)) from error
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _line(self, fd: int, deadline: float) -> bytes:
        while True:
            end = self._unread.find(b"\n")
            if end >= 0:
                line = bytes(self._unread[:end])
                del self._unread[: end + 1]
                return line
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise _Died(f"no answer within {ANSWER_WITHIN_S:.0f} s")
            chunk = os.read(fd, 1 << 20)
            if not chunk:
                raise _Died("it ended without an answer")
            self._unread += chunk


def _row(fields: list[Any]) -> FallbackRow:
    pid, start, uid, gid, cgroup, device, inode, comm, executable, path, *amounts = fields
    who = FallbackWho(
        pid=pid,
        start_ns=start,
        uid=uid,
        gid=gid,
        cgroup=cgroup,
        device=device,
        inode=inode,
        path=0,
        digest=0,
        comm=comm,
        executable=executable,
        cgroup_path=path,
    )
    return FallbackRow(who, *amounts)


def _quality(found: Mapping[str, str]) -> Mapping[Meter, Quality]:
    return MappingProxyType({_METERS[key]: Quality(value) for key, value in found.items()})
