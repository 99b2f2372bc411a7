# SPDX-License-Identifier: Apache-2.0
"""`./dev vm`: the programs on every kernel, then the installed packages on a Debian 12 host.

Both run under QEMU without acceleration, so that they work on any machine; what they are made from
is kept between runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest
from tests.vm import matrix
from tests.vm.kernels import KERNELS

HOST_KERNEL: Final = "6.1"
"""Debian 12's own."""
PARTS: Final = ("matrix", "host")
SHORT: Final = ("boot", "enrolled", "lsm", "selectors")
"""What a whole host shows and nothing else can: early boot, a fleet's host, the LSM, systemd."""


def main(arguments: Sequence[str]) -> int:
    """0 when both did as they should; else pytest's status, or 1 for the matrix."""
    parser = argparse.ArgumentParser(
        prog="./dev vm", description=__doc__, epilog="Other arguments go to pytest, for the host."
    )
    names = [each.name for each in KERNELS]
    parser.add_argument(
        "--kernel",
        action="append",
        choices=names,
        help=f"of both parts; by default all in the matrix, {HOST_KERNEL} on the host",
    )
    parser.add_argument("--only", choices=PARTS, help="leave the other part out")
    parser.add_argument(
        "--short",
        action="store_true",
        help=f"of the host only {', '.join(SHORT)}: a quarter of an hour instead of one",
    )
    parser.add_argument("--json", type=Path, help="write what the matrix found into this file")
    parser.add_argument(
        "--write-docs",
        action="store_true",
        help="write the matrix's coverage table into docs/kernels.md, where all is well",
    )
    chosen, others = parser.parse_known_args(arguments)
    # A test that was named is wanted alone.
    part = chosen.only or ("host" if others else "")
    status = 0
    if part in ("", "matrix"):
        options = [word for name in chosen.kernel or () for word in ("--kernel", name)]
        options += ["--json", str(chosen.json)] if chosen.json else []
        options += ["--write-docs"] if chosen.write_docs else []
        status = matrix.main(options)
    if part in ("", "host"):
        for name in chosen.kernel or (HOST_KERNEL,):
            os.environ["LICAGENT_VM_KERNEL"] = name
            status = int(pytest.main(_tests(others, is_short=chosen.short))) or status
    return status


def _tests(others: Sequence[str], *, is_short: bool) -> list[str]:
    """pytest's arguments: all tests of this folder, unless one of them is named."""
    if any(Path(each.partition("::")[0]).exists() for each in others):
        return list(others)
    folder = Path(__file__).parent
    chosen = [folder / f"test_{name}.py" for name in SHORT] if is_short else [folder]
    return [*map(str, chosen), "--durations=15", *others]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
