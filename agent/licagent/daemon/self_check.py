# SPDX-License-Identifier: Apache-2.0
"""Whether the agent is what was installed: its files, and its programs in the kernel."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from licagent.daemon.reports import VERSION
from licagent.host.integrity import Integrity, measured, own_folders, recorded
from licagent.host.posture import boottime_ns
from licagent.store.errors import DocumentDamaged, StoreError
from licagent.store.statedir import StateDir

if TYPE_CHECKING:
    from licagent.daemon.kernel_side import HookReport

_log: Final = logging.getLogger(__name__)

_DOCUMENT: Final = "integrity"
_SCHEMA: Final = "licagent.integrity/1"
_LINKS_EVERY_NS: Final = 10 * 1_000_000_000
_NAMED_MAX: Final = 10

Links = dict[str, tuple[int, int | None]]


class SelfCheck:
    """Compares files with their manifest, and attached programs with those of the start."""

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self._hooks: Callable[[], Sequence[HookReport]] = tuple
        self._files: Integrity | None = None
        self._links: Links = {}
        self._linked_at_ns = 0
        self._link_problems: tuple[str, ...] = ()
        self.problems: tuple[str, ...] = ()
        """What is not as it should be, for people."""

    def begin(self, hooks: Callable[[], Sequence[HookReport]]) -> None:
        """Take the manifest, and the programs that are attached now. Blocking, some 10 ms.

        `hooks` asks the kernel what is attached.
        """
        self._hooks = hooks
        try:
            self._files = Integrity(self._manifest())
        except (OSError, StoreError) as error:
            _log.error("the agent's own files cannot be checked: %s", error)
        self._links = self._attached()
        self._linked_at_ns = boottime_ns()

    def is_whole(self) -> bool | None:
        """Whether all is as it should be; None: it cannot be told."""
        if self._files is None or not len(self._files):
            return None
        altered = self._files.check()
        now_ns = boottime_ns()
        if now_ns - self._linked_at_ns >= _LINKS_EVERY_NS:
            self._linked_at_ns = now_ns
            attached = self._attached()
            self._link_problems = tuple(
                f"the program {name} was taken away or replaced"
                for name, ids in self._links.items()
                if attached.get(name) != ids
            )
        found = (
            *(f"{path} is not as installed" for path in altered[:_NAMED_MAX]),
            *self._link_problems,
        )
        for problem in found:
            if problem not in self.problems:
                _log.error("%s", problem)
        self.problems = found
        return not found

    def _attached(self) -> Links:
        return {
            hook.name: (hook.link_id, hook.program_id)
            for hook in self._hooks()
            if hook.attached and hook.link_id is not None
        }

    def _manifest(self) -> Mapping[Path, str]:
        folders = own_folders()
        installed = recorded(folders)
        if installed:
            return installed
        try:
            body = self._state.read_document(_DOCUMENT, _SCHEMA)
        except DocumentDamaged as error:
            _log.error("%s", error)
            body = None
        places = [str(folder) for folder in folders]
        if body is None or (body["version"], body["folders"]) != (VERSION, places):
            files = {str(path): digest for path, digest in measured(folders).items()}
            body = {"version": VERSION, "folders": places, "files": files}
            self._state.write_document(_DOCUMENT, _SCHEMA, body)
        return {Path(path): str(digest) for path, digest in body["files"].items()}
