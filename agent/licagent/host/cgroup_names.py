# SPDX-License-Identifier: Apache-2.0
"""What a cgroup's path says: unit, slice, container; and which scopes it answers to.

Anybody who may write a part of the tree chooses the names there. So only what systemd or a
container runtime makes is believed: a unit below slices alone, a container outside user
managers and other containers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from licagent.domain.tables import Scope, ScopeKind

SCOPE_ORDER: Final = {ScopeKind.PATH: 0, ScopeKind.UNIT: 1, ScopeKind.CONTAINER: 2}
"""Which of several names of one cgroup is asked first; the kernel's cgroup_mkdir has this order."""
_HEX = frozenset("0123456789abcdef")
_UNIT_SUFFIXES = (".service", ".scope", ".socket", ".mount", ".swap")


@dataclass(frozen=True, slots=True)
class CgroupNames:
    """What a cgroup's path says about the workload in it; None where it says nothing."""

    unit: str | None = None
    slice: str | None = None
    container: str | None = None


def parts_of(path: str) -> list[str]:
    """The folders of a cgroup path; the root has none."""
    return [part for part in path.split("/") if part]


def _unescape_unit(name: str) -> str:
    # systemd puts "_" before names that clash with the kernel's files (cg_escape()).
    return name.removeprefix("_")


def container_id(base_name: str) -> str | None:
    """The container id (12 to 64 hex digits) in a cgroup's base name, or None.

    Known forms: docker-ID.scope, libpod-ID.scope, crio-ID.scope, cri-containerd-ID.scope,
    `...:cri-containerd:ID`, and the bare ID of the cgroupfs drivers. Not a container: conmon's
    own scope, and a pod, whose UUID also ends in 12 hex digits.
    """
    name = base_name.removesuffix(".scope")
    prefix, digits = "", name
    for position in range(len(name) - 1, -1, -1):
        if name[position] in "-:":
            prefix, digits = name[:position], name[position + 1 :]
            break
    if not 12 <= len(digits) <= 64 or not _HEX.issuperset(digits):
        return None
    if "conmon" in prefix or prefix.startswith("pod"):
        return None
    return digits


def names_of(path: str) -> CgroupNames:
    """Unit, slice and container of a cgroup path, as the selectors see them."""
    unit: str | None = None
    slice_name: str | None = None
    container: str | None = None
    in_user_manager = False
    for part in parts_of(path):
        if unit is None and part.endswith(".slice") and container is None:
            slice_name = _unescape_unit(part)
            continue
        if container is None and not in_user_manager:
            container = container_id(part)
        if unit is None:
            # Only the first folder that is no slice can be a system unit: what is below it
            # is the unit's own, and may be delegated to its user.
            unit = _unescape_unit(part) if part.endswith(_UNIT_SUFFIXES) else ""
        in_user_manager = in_user_manager or _is_user_manager(part)
    return CgroupNames(unit or None, slice_name, container)


def _is_user_manager(part: str) -> bool:
    return part.startswith("user@") and part.endswith(".service")


def matches(scope: Scope, path: str) -> bool:
    """Whether the cgroup at `path` itself is the one that `scope` names.

    Its descendants belong to the scope as well, but that is the look-up's business: the kernel
    walks up from the socket's cgroup. The forms are those of ScopeKind: a folder that a user
    could have made (below a unit, or below user@UID.service) never counts as a unit or
    container.
    """
    parts = parts_of(path)
    if scope.kind is ScopeKind.PATH:
        return parts == parts_of(scope.name)
    if not parts:
        return False
    *ancestors, base = parts
    if scope.kind is ScopeKind.UNIT:
        return scope.name in (base, _unescape_unit(base)) and all(
            part.endswith(".slice") for part in ancestors
        )
    found = container_id(base)
    return (
        found is not None
        and len(scope.name) >= 12
        and found.startswith(scope.name)
        and not any(_is_user_manager(part) for part in ancestors)
        # A container may be given its own subtree to write; what it makes there is not
        # another container.
        and not any(container_id(part) for part in ancestors)
    )
