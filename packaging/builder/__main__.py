# SPDX-License-Identifier: Apache-2.0
"""Builds the packages into dist/: `./dev package [--deb] [--rpm] [--version V] [--out DIR]`.

What is there already and made from the same inputs is kept, so that calling it again costs a
second. Nothing is fetched but the wheels that requirements/*.txt name by hash; the package tools
then work without a network.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import builds
import inputs

_ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Build what was asked for; print the packages, one path a line. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="./dev package", description=__doc__)
    parser.add_argument("--deb", action="store_true", help="only the Debian packages")
    parser.add_argument("--rpm", action="store_true", help="only the RPM packages")
    parser.add_argument("--version", help="instead of pyproject.toml's: digits and dots")
    parser.add_argument(
        "--out", type=Path, default=_ROOT / "dist", help="where they go  [default: dist]"
    )
    arguments = parser.parse_args()
    both = arguments.deb == arguments.rpm
    try:
        version = inputs.checked_version(arguments.version or inputs.project_version(_ROOT))
        out = arguments.out.resolve()
        made: list[Path] = []
        if both or arguments.deb:
            made += builds.deb(_ROOT, version, out)
        if both or arguments.rpm:
            made += builds.rpm(_ROOT, version, out)
    except inputs.Refused as error:
        print(f"dev: package: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"dev: package: {error}", file=sys.stderr)
        return 1
    for path in made:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
