# SPDX-License-Identifier: Apache-2.0
"""Programs: loaded from objects or compiled by bcc, attached, and what became of each hook."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from licagent.kernel import attach, libbpf
from licagent.kernel.bpf_object import BpfObject
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.build import object_folder, source_folder
from licagent.kernel.hook_model import Hook, HookKind
from licagent.kernel.hooks import CORE_OBJECTS, HOOKS, LSM_HOOKS
from licagent.kernel.interfaces import InterfaceLinks
from licagent.kernel.libbpf import BpfError

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


class Programs:
    """Loads programs, attaches them to one cgroup, and notes in a report what became of each."""

    def __init__(self, pins: PinFolder, cgroup: Path) -> None:
        self.pins = pins
        self.cgroup = cgroup
        self.objects = object_folder()

    def load_prebuilt(self, name: str, report: Report) -> None:
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
        self.load_singly(path, hooks, report)

    def load_singly(self, path: Path, hooks: dict[str, Hook], report: Report) -> None:
        """Load an object again for each of its programs: what the kernel refuses stays alone."""
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

    def load_bcc(self, report: Report) -> None:
        """Compile and load the core on this host. Raises LoadError where that cannot be."""
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


def _last_words(log: str) -> str:
    """The verifier's reason, from libbpf's log."""
    lines = [line for line in log.splitlines() if line and not line.startswith(("libbpf", "--"))]
    for line in reversed(lines):
        if not line.startswith(("processed", "verification", ";")) and line[0].isalpha():
            return f"({line[:160]})"
    return ""
