# SPDX-License-Identifier: Apache-2.0
"""The loader process: make maps, load and attach programs, pin, report, end.

``python -m licagent.kernel.loader --bpffs DIR --cgroup DIR [--loader auto|prebuilt|bcc]`` prints
one JSON object. The daemon runs it as a child, so that neither the kernel's BTF nor bcc's
compiler ever counts against the daemon's memory.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from licagent.kernel import attach, libbpf, migrate
from licagent.kernel.accounting import leave_memory_limits
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.guard import GuardTables, security_modules
from licagent.kernel.hooks import (
    BTF_OBJECTS,
    CORE_OBJECTS,
    FORMER_HOOKS,
    HOOKS,
    LSM_HOOKS,
    LSM_OBJECTS,
    Hook,
    HookKind,
)
from licagent.kernel.hooks import hook as hook_named
from licagent.kernel.interfaces import InterfaceLinks
from licagent.kernel.layout import SeenBy
from licagent.kernel.libbpf import BpfError, BpfObject
from licagent.kernel.maps import Map

_BUILD_SIZE: Final = 80
_TURN_S: Final = 60
"""How long to wait for another loader: longer than one takes, shorter than the unit's limit."""
_PLAIN: Final = "_plain.bpf.o"


@dataclass(slots=True)
class HookState:
    """What became of one hook."""

    name: str
    attached: bool = False
    loader: str = ""
    error: str = ""


@dataclass(slots=True)
class Report:
    """What the loader did."""

    loader: str
    hooks: list[HookState] = field(default_factory=list)
    unchanged: bool = False
    duration_ns: int = 0
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """As one line."""
        return json.dumps({"schema_version": 1, **asdict(self)})


class LoadError(Exception):
    """The enforcement core could not be loaded."""


def object_folder() -> Path:
    """Where the built objects are: LICAGENT_BPF_OBJECTS, the package, or the source tree."""
    if configured := os.environ.get("LICAGENT_BPF_OBJECTS"):
        return Path(configured)
    packaged = Path(__file__).parent / "bpf_objects"
    if packaged.is_dir():
        return packaged
    return Path(__file__).parents[3] / "build" / "bpf"


def source_folder() -> Path:
    """Where the BPF sources are, for bcc: LICAGENT_BPF_SOURCES, the package, or the tree."""
    if configured := os.environ.get("LICAGENT_BPF_SOURCES"):
        return Path(configured)
    packaged = Path(__file__).parent / "bpf_sources"
    if packaged.is_dir():
        return packaged
    return Path(__file__).parents[3] / "bpf"


def build_id(loader: str) -> str:
    """What would be loaded: a digest over kernel, loader and all objects or sources."""
    digest = hashlib.sha256(f"{platform.release()} {loader}".encode())
    for path in sorted(object_folder().glob("*.bpf.o")):
        digest.update(path.read_bytes())
    if loader == "bcc":
        for path in sorted(source_folder().rglob("*.[ch]")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


class Loader:
    """Loads everything for one cgroup and one pin folder."""

    def __init__(self, pins: PinFolder, cgroup: Path) -> None:
        self.pins = pins
        self.cgroup = cgroup
        self.objects = object_folder()

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
        build, attached = self._installed()
        if build == wanted and self._all_live(attached):
            return self._unchanged(loader, attached)
        report = Report(loader)
        self._prepare_maps(report)
        if loader == "prebuilt":
            for name in CORE_OBJECTS:
                self._load_prebuilt(name, report)
        else:
            self._load_bcc(report)
        missing = [
            state
            for state in report.hooks
            if hook_named(state.name).required and not state.attached
        ]
        if len(missing) == sum(hook.required for hook in HOOKS):
            raise LoadError("; ".join(sorted({state.error for state in missing})))
        for name in BTF_OBJECTS:
            self._load_prebuilt(name, report)
        self._load_lsm(report)
        self._remove_former()
        self._record(wanted, report)
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
                self._load_prebuilt(name, tried)
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
            self._load_singly(self.objects / f"{name}.bpf.o", refused, report)
        self._load_lsm(report)
        return report

    def _remove_former(self) -> None:
        """Detach what an earlier version attached and this one does not have."""
        for name in FORMER_HOOKS:
            (self.pins.links / name).unlink(missing_ok=True)

    def _prepare_maps(self, report: Report) -> None:
        """Make the maps, and fill them from an older schema's before any program sees them."""
        fresh = not (self.pins.maps / "control").exists()
        path = self.objects / "maps.bpf.o"
        if path.exists():
            with BpfObject(path, self.pins.maps) as obj:
                obj.load()
        older = self.pins.other_maps()
        if fresh and older:
            left = migrate.migrate(older[-1], self.pins.maps)
            if left:
                report.notes.append("not carried over from the last version: " + ", ".join(left))

    def _load_prebuilt(self, name: str, report: Report) -> None:
        """Load an object whole; where that fails, program by program."""
        hooks = {hook.program: hook for hook in (*HOOKS, *LSM_HOOKS) if hook.object == name}
        path = self.objects / f"{name}.bpf.o"
        if not path.exists():
            for hook in hooks.values():
                state = HookState(hook.name, error=f"{path.name} is not built (make -C bpf)")
                report.hooks.append(state)
            return
        # The plain form reads no task struct: for kernels without BTF, or whose verifier does not
        # let cgroup programs do so.
        plain = self.objects / f"{name}{_PLAIN}"
        for candidate in (path, plain):
            try:
                with BpfObject(candidate, self.pins.maps) as obj:
                    if candidate == plain:
                        obj.keep_states()
                    obj.load()
                    self._attach_all(obj, hooks, report)
                return
            except BpfError as error:
                if error.errno in (errno.EPERM, errno.ENOMEM) and "load" not in error.action:
                    raise LoadError(str(error)) from error
            if not plain.exists():
                break
            path = plain
        self._load_singly(path, hooks, report)

    def _load_singly(self, path: Path, hooks: dict[str, Hook], report: Report) -> None:
        for program, hook in hooks.items():
            try:
                with BpfObject(path, self.pins.maps) as obj:
                    if path.name.endswith(_PLAIN):
                        obj.keep_states()
                    obj.select(lambda candidate, wanted=program: candidate == wanted)  # type: ignore[misc]
                    obj.load()
                    self._attach_all(obj, {program: hook}, report)
            except BpfError as error:
                report.hooks.append(
                    HookState(hook.name, error=f"{error.strerror} {_last_words(error.log)}".strip())
                )

    def _attach_all(self, obj: BpfObject, hooks: dict[str, Hook], report: Report) -> None:
        for program, handle in obj.programs():
            hook = hooks.get(program)
            if hook is None:
                continue
            state = HookState(hook.name, loader="prebuilt")
            pin = self.pins.links / hook.name
            try:
                if hook.kind is HookKind.CGROUP:
                    attach.attach_cgroup(hook, obj.program_fd(handle), self.cgroup, pin)
                elif hook.kind is HookKind.INTERFACE:
                    # The daemon attaches it: it knows the host's network namespaces.
                    InterfaceLinks(self.pins, hook.name).install(obj.program_fd(handle))
                else:
                    attach.attach_tracing(obj, handle, pin, alone=hook.object == "usage")
                state.attached = True
            except BpfError as error:
                state.error = str(error.strerror)
            report.hooks.append(state)

    def _load_bcc(self, report: Report) -> None:
        # Imported here: the module is for this process only, and only when asked for.
        from licagent.kernel.bcc_compiler import BccObject, BccUnavailable

        map_fds = {path.name: libbpf.open_pin(path) for path in self.pins.maps.iterdir()}
        try:
            for name in CORE_OBJECTS:
                try:
                    compiled = BccObject(source_folder() / f"{name}.bpf.c", map_fds)
                except BccUnavailable as error:
                    raise LoadError(str(error)) from error
                except Exception as error:
                    raise LoadError(f"bcc does not compile {name}.bpf.c: {error}") from error
                for hook in HOOKS:
                    if hook.object != name:
                        continue
                    state = HookState(hook.name, loader="bcc")
                    try:
                        fd = compiled.program_fd(hook)
                        pin = self.pins.links / hook.name
                        attach.attach_cgroup(hook, fd, self.cgroup, pin)
                        state.attached = True
                    except Exception as error:  # noqa: BLE001 - bcc raises bare Exception
                        state.error = str(error)
                    report.hooks.append(state)
        finally:
            for fd in map_fds.values():
                os.close(fd)

    def _installed(self) -> tuple[str, frozenset[str]]:
        """The build that is at work, and the names of those of its hooks that the kernel took."""
        path = self.pins.maps / "build"
        if not path.exists():
            return "", frozenset()
        build = Map(path)
        try:
            value = build.lookup(bytes(4)) or b""
        finally:
            build.close()
        digest, _, mask = value.rstrip(b"\0").decode(errors="replace").partition(":")
        try:
            bits = int(mask, 16)
        except ValueError:  # of an earlier version
            return "", frozenset()
        return digest, frozenset(hook.name for index, hook in enumerate(HOOKS) if bits >> index & 1)

    def _record(self, digest: str, report: Report) -> None:
        """Remember what is at work; nothing where something is missing that enforcement needs."""
        attached = {state.name for state in report.hooks if state.attached}
        mask = sum(1 << index for index, hook in enumerate(HOOKS) if hook.name in attached)
        is_whole = all(hook.name in attached for hook in HOOKS if hook.required)
        value = f"{digest}:{mask:x}" if is_whole else ""
        build = Map(self.pins.maps / "build")
        try:
            build.update(bytes(4), value.encode().ljust(_BUILD_SIZE, b"\0"))
        finally:
            build.close()

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


def _last_words(log: str) -> str:
    """The verifier's reason, from libbpf's log."""
    lines = [line for line in log.splitlines() if line and not line.startswith(("libbpf", "--"))]
    for line in reversed(lines):
        if not line.startswith(("processed", "verification", ";")) and line[0].isalpha():
            return f"({line[:160]})"
    return ""


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
