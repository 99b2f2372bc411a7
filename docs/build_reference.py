#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0

"""Writes what is generated from the code: reference pages, manual, completions.

Run it after a change to a command, hook, reason, setting, map or
.proto file. With --check it changes nothing
and ends with 1 if a file is not what it would write; a test runs it so.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from generator.degraded import degraded
from generator.grpc import grpc
from generator.hooks import hooks
from generator.limits import limits
from generator.metrics import metrics
from generator.plane_settings import plane_settings
from generator.programs import LICAGENT, LICPLANE, completions, manual, reference
from generator.reasons import reasons
from generator.settings import settings
from generator.sizing import sizing
from generator.statuses import statuses

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the formula of kernel memory is the bench's

# ----------------------------------------------------------------------------------------- main


def outputs() -> dict[Path, str]:
    """Every generated file and its text."""
    packaging = ROOT / "packaging"
    found = {
        ROOT / "docs" / "reference" / "commands.md": reference(LICAGENT),
        ROOT / "docs" / "reference" / "licplane.md": reference(LICPLANE),
        ROOT / "docs" / "reference" / "hooks.md": hooks(),
        ROOT / "docs" / "reference" / "reasons.md": reasons(),
        ROOT / "docs" / "reference" / "settings.md": settings(),
        ROOT / "docs" / "reference" / "limits.md": limits(),
        ROOT / "docs" / "reference" / "exit-status.md": statuses(),
        ROOT / "docs" / "reference" / "degraded.md": degraded(),
        ROOT / "docs" / "reference" / "grpc.md": grpc(),
        ROOT / "docs" / "reference" / "licplane-settings.md": plane_settings(),
        ROOT / "docs" / "reference" / "metrics.md": metrics(),
        ROOT / "docs" / "operations" / "sizing.md": sizing(),
    }
    for program in (LICAGENT, LICPLANE):
        found[packaging / "man" / f"{program.name}.1"] = manual(program)
        for name, text in completions(program).items():
            found[packaging / "completions" / name] = text
    return found


def main() -> int:
    """Write the files, or with --check name those that differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, name what differs")
    check = parser.parse_args().check
    stale = []
    for path, text in outputs().items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.relative_to(ROOT))
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for path in stale:
        sys.stderr.write(
            f"{path}: {'out of date, run docs/build_reference.py' if check else 'written'}\n"
        )
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
