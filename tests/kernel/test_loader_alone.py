# SPDX-License-Identifier: Apache-2.0
"""One loader at a time in a pin folder; none takes away what is at work without a successor."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest
from tests.kernel.harness.foreign import foreign_program

from licagent.kernel import libbpf
from licagent.kernel.attach import _take_place
from licagent.kernel.bpffs import PinFolder

_HOLD: Final = """
import sys
from pathlib import Path
from licagent.kernel.bpffs import PinFolder
with PinFolder(Path(sys.argv[1])).alone(5):
    print("mine", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[PinFolder]:
    """A pin folder with a mount of its own."""
    found = PinFolder(tmp_path / "bpf")
    found.create()
    yield found
    found.remove()


def hold(pins: PinFolder) -> subprocess.Popen[str]:
    """A loader of somebody who died: at work until it is killed."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", _HOLD, str(pins.root)]
    holder = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "mine\n"
    return holder


def test_a_second_loader_waits_until_the_first_has_ended(pins: PinFolder) -> None:
    with ExitStack() as stack:
        holder = stack.enter_context(hold(pins))
        stack.callback(holder.kill)
        with pytest.raises(TimeoutError, match="another loader is at work"), pins.alone(0):
            pass
        holder.kill()
        with pins.alone(30):  # as soon as it is dead: the kernel lets go of its lock
            assert pins.maps.is_dir()


def test_what_is_pinned_stays_where_its_successor_is_missing(pins: PinFolder) -> None:
    program = foreign_program()
    try:
        pin = pins.programs / "at_work"
        libbpf.pin_fd(program, pin)
        with pytest.raises(FileNotFoundError):
            _take_place(pin.with_name("at_work__new"), pin)
        assert pin.exists()

        libbpf.pin_fd(program, pin.with_name("at_work__new"))
        _take_place(pin.with_name("at_work__new"), pin)
        assert [each.name for each in pins.programs.iterdir()] == ["at_work"]
    finally:
        os.close(program)
