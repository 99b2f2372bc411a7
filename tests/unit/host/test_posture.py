# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from licagent.host.posture import (
    boot_id,
    boottime_ns,
    clock_sync,
    kernel_version,
    lockdown,
    machine_id,
    read_posture,
    secure_boot,
    security_modules,
)


def test_this_host() -> None:
    before, since_ns = clock_sync(), time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    posture = read_posture()
    # The error that is possible grows every second.
    while (after := clock_sync()) != before:
        before, since_ns = after, time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        posture = read_posture()
    assert posture.hostname == socket.gethostname()
    assert posture.kernel_release == os.uname().release
    assert len(posture.boot_id) == 36
    assert posture.boot_id == boot_id()
    assert since_ns <= posture.boottime_ns <= boottime_ns()
    assert posture.clock == before
    assert posture.clock is not None
    assert posture.clock.max_error_us >= 0


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("6.1.0-18-amd64", (6, 1)),
        ("5.10.0", (5, 10)),
        ("7.2-rc1", (7, 2)),
        ("6.18.44-fc-v669", (6, 18)),
        ("6.6+", (6, 6)),
    ],
)
def test_kernel_versions(release: str, expected: tuple[int, int]) -> None:
    assert kernel_version(release) == expected


def test_this_kernels_version() -> None:
    assert kernel_version() >= (5, 10)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"\6\0\0\0\1", True), (b"\6\0\0\0\0", False), (b"", None), (b"\1", None)],
)
def test_secure_boot(tmp_path: Path, content: bytes, expected: bool | None) -> None:
    (tmp_path / "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c").write_bytes(content)
    assert secure_boot(tmp_path) is expected


def test_a_host_without_firmware_variables_or_securityfs(tmp_path: Path) -> None:
    assert secure_boot(tmp_path) is None
    assert lockdown(tmp_path / "lockdown") is None
    assert security_modules(tmp_path / "lsm") == ()
    assert machine_id(tmp_path / "machine-id") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[none] integrity confidentiality\n", "none"),
        ("none integrity [confidentiality]\n", "confidentiality"),
        ("", None),
        ("none", None),
    ],
)
def test_lockdown(tmp_path: Path, text: str, expected: str | None) -> None:
    (tmp_path / "lockdown").write_text(text)
    assert lockdown(tmp_path / "lockdown") == expected


def test_security_modules(tmp_path: Path) -> None:
    (tmp_path / "lsm").write_text("lockdown,capability,bpf")
    assert security_modules(tmp_path / "lsm") == ("lockdown", "capability", "bpf")


@pytest.mark.parametrize("text", ["", "uninitialized\n", "ABC", "g" * 32])
def test_a_machine_id_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "machine-id").write_text(text)
    assert machine_id(tmp_path / "machine-id") is None
