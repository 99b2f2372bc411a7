# SPDX-License-Identifier: Apache-2.0
"""Which license compute and storage use belongs to. Pure.

Nobody is refused the CPU by this: a `compute` resource is measured, and its bindings say under
which license. The order is that of the kernel's rule tables: among the bindings that match, the
most specific one wins (`Shape`), of several scopes the deepest.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Subject:
    """Who used something, in the numbers of the compiled policy."""

    uid: int
    gid: int
    scopes: tuple[int, ...] = ()
    """Numbers of the scopes its cgroup lies in, the deepest first."""
    path: int = 0
    digest: int = 0


@dataclass(frozen=True, slots=True)
class Attribution:
    """What use is charged to; all empty where no resource is used."""

    license: str = ""
    resource: str = ""
    binding: str = ""


NOTHING = Attribution()
