# SPDX-License-Identifier: Apache-2.0
"""The loader process: make maps, load and attach programs, pin, report, end.

``python -m licagent.kernel.loader --bpffs DIR --cgroup DIR [--loader auto|prebuilt|bcc]`` prints
one JSON object. The daemon runs it as a child, so that neither the kernel's BTF nor bcc's
compiler ever counts against the daemon's memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

from licagent.kernel import attach, migrate
from licagent.kernel.accounting import leave_memory_limits
from licagent.kernel.bpf_object import BpfObject
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.build import build_id, installed, record
from licagent.kernel.guard import GuardTables, security_modules
from licagent.kernel.hook_model import Hook, HookKind
from licagent.kernel.hooks import (
    BTF_OBJECTS,
    CORE_OBJECTS,
    FORMER_HOOKS,
    HOOKS,
    LSM_HOOKS,
    LSM_OBJECTS,
)
from licagent.kernel.hooks import hook as hook_named
from licagent.kernel.numbers import SeenBy
from licagent.kernel.programs import HookState, LoadError, Programs, Report

_TURN_S: Final = 60
"""How long to wait for another loader: longer than one takes, shorter than the unit's limit."""


class Loader:
    """Loads everything for one cgroup and one pin folder."""

    def __init__(self, pins: PinFolder, cgroup: Path) -> None:
        self.pins = pins
        self.cgroup = cgroup
        self._programs = Programs(pins, cgroup)

    def run(self, loader: str) -> Report:
        """Load by `loader`: "prebuilt", "bcc", or "auto" (prebuilt, else bcc).

        Raises:
            LoadError: the core could not be loaded; what was attached before stays attached.
            TimeoutError: another loader was at work on this folder for a minute.
        """
        start = time.monotonic_ns()
        # A loader that lost its daemon may still be at work, and both use the same names.
        with self.pins.alone(_TURN_S):
            report = self._auto() if loader == "auto" else self._run(loader)
        report.duration_ns = time.monotonic_ns() - start
        return report

    def _auto(self) -> Report:
        """By prebuilt objects; by bcc where one that is required does not load."""
        report = None
        try:
            report = self._run("prebuilt")
            why = "; ".join(
                f"{state.name}: {state.error}"
                for state in report.hooks
                if hook_named(state.name).required and not state.attached
            )
            if not why:
                return report
        except (LoadError, OSError) as error:
            why = str(error)
        try:
            compiled = self._run("bcc")
        except (LoadError, OSError) as error:
            if report is None:
                raise LoadError(f"neither prebuilt ({why}) nor by bcc ({error})") from error
            report.notes.append(f"nor does bcc take their place: {error}")
            return report
        compiled.notes.append(f"prebuilt objects do not load here: {why}")
        return compiled

    def _run(self, loader: str) -> Report:
        wanted = build_id(loader)
        build, attached = installed(self.pins)
        if build == wanted and self._all_live(attached):
            return self._unchanged(loader, attached)
        report = Report(loader)
        self._prepare_maps(report)
        if loader == "prebuilt":
            for name in CORE_OBJECTS:
                self._programs.load_prebuilt(name, report)
        else:
            self._programs.load_bcc(report)
        missing = [
            state
            for state in report.hooks
            if hook_named(state.name).required and not state.attached
        ]
        if len(missing) == sum(hook.required for hook in HOOKS):
            raise LoadError("; ".join(sorted({state.error for state in missing})))
        for name in BTF_OBJECTS:
            self._programs.load_prebuilt(name, report)
        self._load_lsm(report)
        self._remove_former()
        record(self.pins, wanted, {state.name for state in report.hooks if state.attached})
        for folder in self.pins.other_maps():
            migrate.remove(folder)
        return report

    def _load_lsm(self, report: Report) -> None:
        """What needs BPF among the kernel's security modules; nothing, and no word, elsewhere."""
        modules = security_modules()
        if modules is not None and "bpf" not in modules:
            return
        guard = GuardTables(self.pins)
        if modules is None and report.unchanged and not guard.exist():
            return  # tried when this build was loaded
        tried = Report(report.loader)
        for name in LSM_OBJECTS:
            hooks = [hook for hook in LSM_HOOKS if hook.object == name]
            links = [self.pins.links / hook.name for hook in hooks]
            if report.unchanged and all(attach.link_is_live(link, None) for link in links):
                tried.hooks += [HookState(hook.name, True, "prebuilt") for hook in hooks]
            else:
                self._programs.load_prebuilt(name, tried)
        seen = guard.prepare() if guard.exist() else 0
        if modules is None and not seen:
            return  # securityfs is not mounted, and this kernel does not have it either
        for state in tried.hooks:
            object_ = hook_named(state.name).object
            if state.attached and not seen & SeenBy[object_.upper()]:
                (self.pins.links / state.name).unlink(missing_ok=True)
                state.attached, state.error = False, "attached, but this kernel never calls it"
        report.hooks += tried.hooks

    def _unchanged(self, loader: str, attached: Collection[str]) -> Report:
        """This build is at work. What this kernel refused is asked for again: for its words."""
        report = Report(loader, unchanged=True)
        report.hooks = [
            HookState(hook.name, True, _loader_of(hook, loader))
            for hook in HOOKS
            if hook.name in attached
        ]
        for name in BTF_OBJECTS:
            refused = {
                hook.program: hook
                for hook in HOOKS
                if hook.object == name and hook.name not in attached
            }
            self._programs.load_singly(self._programs.objects / f"{name}.bpf.o", refused, report)
        self._load_lsm(report)
        return report

    def _remove_former(self) -> None:
        """Detach what an earlier version attached and this one does not have."""
        for name in FORMER_HOOKS:
            (self.pins.links / name).unlink(missing_ok=True)

    def _prepare_maps(self, report: Report) -> None:
        """Make the maps, and fill them from an older schema's before any program sees them."""
        fresh = not (self.pins.maps / "control").exists()
        path = self._programs.objects / "maps.bpf.o"
        if path.exists():
            with BpfObject(path, self.pins.maps) as obj:
                obj.load()
        older = self.pins.other_maps()
        if fresh and older:
            left = migrate.migrate(older[-1], self.pins.maps)
            if left:
                report.notes.append("not carried over from the last version: " + ", ".join(left))

    def _all_live(self, names: Collection[str]) -> bool:
        cgroup = attach.cgroup_id(self.cgroup)
        return all(
            (self.pins.programs / hook.name).exists()
            if hook.kind is HookKind.INTERFACE
            else attach.link_is_live(
                self.pins.links / hook.name, cgroup if hook.kind is HookKind.CGROUP else None
            )
            for hook in HOOKS
            if hook.name in names
        )


def _loader_of(hook: Hook, loader: str) -> str:
    return loader if hook.object in CORE_OBJECTS else "prebuilt"


def main() -> int:
    """Entry of the loader process."""
    parser = argparse.ArgumentParser(prog="licagent-loader")
    parser.add_argument("--bpffs", type=Path, required=True)
    parser.add_argument("--cgroup", type=Path, required=True)
    parser.add_argument("--loader", choices=("auto", "prebuilt", "bcc"), default="auto")
    arguments = parser.parse_args()
    limited = leave_memory_limits()
    try:
        report = Loader(PinFolder(arguments.bpffs), arguments.cgroup).run(arguments.loader)
    except (LoadError, OSError) as error:
        sys.stdout.write(json.dumps({"schema_version": 1, "error": str(error)}) + "\n")
        return 1
    if limited:
        report.notes.append(limited)
    sys.stdout.write(report.to_json() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
