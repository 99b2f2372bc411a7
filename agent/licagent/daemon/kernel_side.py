# SPDX-License-Identifier: Apache-2.0
"""The daemon's hold on the kernel: loads by a child process, opens what is pinned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from licagent.daemon.interface_keeper import InterfaceKeeper
from licagent.host.namespaces import NamespaceError, network_namespaces, run_inside
from licagent.kernel import bpf_info, libbpf
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.control import ControlWord
from licagent.kernel.enforcement_structs import SocketRecord
from licagent.kernel.events import Counters
from licagent.kernel.guard import GuardTables
from licagent.kernel.hook_model import Hook, HookKind
from licagent.kernel.hooks import HOOKS, LSM_HOOKS
from licagent.kernel.identity import IdentityTables
from licagent.kernel.interfaces import InterfaceLinks
from licagent.kernel.iterators import Iterators
from licagent.kernel.licenses import LicenseTable
from licagent.kernel.maps import check_layout
from licagent.kernel.tables import TableWriter
from licagent.kernel.usage_meter import UsageMeter

_LOADER_TIMEOUT_S: Final = 240


class KernelUnavailable(Exception):
    """The enforcement core could not be loaded."""


@dataclass(frozen=True, slots=True)
class HookReport:
    """One hook, as the loader and the kernel report it."""

    name: str
    attached: bool
    loader: str
    error: str
    link_id: int | None
    program_id: int | None


def load_programs(pins: PinFolder, cgroup: Path, loader: str) -> dict[str, Any]:
    """Run the loader process and return its report.

    Raises:
        KernelUnavailable: nothing could be attached, with the loader's reason.
    """
    command = [
        sys.executable,
        "-P",  # no module out of the folder that root happens to be in
        "-m",
        "licagent.kernel.loader",
        "--bpffs",
        str(pins.root),
        "--cgroup",
        str(cgroup),
        "--loader",
        loader,
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_LOADER_TIMEOUT_S, check=False, text=True
        )
    except subprocess.TimeoutExpired as error:
        raise KernelUnavailable(f"the loader did not end within {_LOADER_TIMEOUT_S} s") from error
    try:
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        words = done.stderr.strip()[-2000:] or f"exit status {done.returncode}"
        raise KernelUnavailable(f"the loader failed: {words}") from error
    if "error" in report:
        raise KernelUnavailable(str(report["error"]))
    return report


class KernelSide:
    """Everything that is pinned, opened. One per daemon."""

    def __init__(self, pins: PinFolder, root_cgroup: int, report: dict[str, Any]) -> None:
        self.pins = pins
        self.report = report
        check_layout(pins.maps)
        self.control = ControlWord(pins)
        self.control.root_cgroup = root_cgroup
        self.licenses = LicenseTable(pins)
        self.tables = TableWriter(pins, self.control)
        self.identity = IdentityTables(pins)
        self.counters = Counters(pins)
        self.counters.prepare()
        self.iterators = Iterators(pins)
        self.usage = UsageMeter(pins)
        self.guard = GuardTables(pins)
        name = next(hook.name for hook in HOOKS if hook.kind is HookKind.INTERFACE)
        self.interfaces = InterfaceKeeper(InterfaceLinks(pins, name), in_each_namespace)

    def hooks(self) -> list[HookReport]:
        """The hooks as they are attached now: asked of the kernel, not remembered."""
        states = {state["name"]: state for state in self.report["hooks"]}
        found = []
        # Those of the LSM only where the loader tried them: else they are open routes (doctor).
        for hook in (*HOOKS, *(hook for hook in LSM_HOOKS if hook.name in states)):
            state = states.get(hook.name, {})
            if hook.kind is HookKind.INTERFACE:
                found.append(self._interface_hook(hook, state))
                continue
            link_id = program_id = None
            pin = self.pins.links / hook.name
            live = False
            if pin.exists():
                try:
                    fd = libbpf.open_pin(pin)
                except libbpf.BpfError:
                    fd = -1
                if fd >= 0:
                    try:
                        info = bpf_info.link_info(fd)
                        link_id, program_id = info.id, info.program_id
                        # A cgroup link whose cgroup is gone is attached to nothing.
                        live = hook.attach_type is None or info.cgroup_id != 0
                    finally:
                        os.close(fd)
            error = str(state.get("error", ""))
            if not live and not error:
                error = "detached by somebody else"
            loader = str(state.get("loader", ""))
            found.append(HookReport(hook.name, live, loader, error, link_id, program_id))
        return found

    def _interface_hook(self, hook: Hook, state: dict[str, Any]) -> HookReport:
        program_id, attached, problem = self.interfaces.state()
        error = str(state.get("error", "")) or problem
        loader = str(state.get("loader", ""))
        return HookReport(hook.name, attached, loader, error, None, program_id)

    def adopt(self) -> None:
        """Tag what is untagged: sockets older than the agent or than the policy."""
        self.iterators.clear_listeners()
        in_each_namespace(self.iterators.note_listeners)
        self.iterators.adopt()

    def cut(self) -> list[SocketRecord]:
        """End the sockets whose tag no longer holds, in every network namespace."""
        ended: list[SocketRecord] = []

        def here() -> None:
            ended.extend(self.iterators.cut())

        in_each_namespace(here)
        return ended

    def close(self) -> None:
        """Close everything; enforcement goes on."""
        self.interfaces.close()
        self.tables.close()
        self.identity.close()
        self.counters.close()
        self.usage.close()
        self.licenses.close()
        self.control.close()


def in_each_namespace(action: Callable[[], None]) -> None:
    """Run `action` inside every network namespace of the host, ours first."""
    own = Path("/proc/self/ns/net").stat().st_ino
    action()
    with network_namespaces() as namespaces:
        for namespace in namespaces:
            if namespace.inode == own:
                continue
            try:
                run_inside(namespace.fd, action)
            except NamespaceError:
                continue
