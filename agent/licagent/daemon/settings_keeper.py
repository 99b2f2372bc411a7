# SPDX-License-Identifier: Apache-2.0
"""The settings in force: read, and kept, so that a host whose agent.toml is broken goes on.

A daemon that did not start on a typing error would leave the host with the tables of yesterday:
no license would be renewed and no revocation taken. One that started with defaults would observe
where it has enforced. So it starts with the last good settings, and says so in its status.
"""

from __future__ import annotations

import logging
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from licagent.domain.config import AgentConfig
from licagent.domain.config_reader import (
    DEFAULT_PATH,
    MAX_FILE_BYTES,
    PATH_VARIABLE,
    PREFIX,
    ConfigError,
    parse_config,
    read_config,
    values,
)
from licagent.kernel.libbpf import BpfError
from licagent.store.errors import StoreError
from licagent.store.statedir import StateDir

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent

_log: Final = logging.getLogger(__name__)

_DOCUMENT: Final = "last-good-settings"
_SCHEMA: Final = "licagent.settings/1"
_TEXT: Final = "text"
_VARIABLES: Final = "variables"
_FILE: Final = "file"

LIVE: Final = ("mode", "existing_sockets", "failsafe")
"""Settings that a reload puts in force; the others wait for the next start."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The settings to run with, and why they are not those that are written, if they are not."""

    config: AgentConfig
    problem: str = ""


class SettingsKeeper:
    """Reads the settings of one daemon, and remembers the last good ones in its state folder."""

    def __init__(self, environment: Mapping[str, str], path: Path | None = None) -> None:
        """`path`: of agent.toml where it was named; else as `read_config` finds it."""
        self._environment = environment
        self._path = path
        self.problem = ""
        """What is wrong with the settings as they are written now; "" where nothing is."""
        self.waiting: tuple[str, ...] = ()
        """Settings that were changed and wait for the next start."""

    def choose(self) -> Chosen:
        """The settings to start with: those that are written, else the last good ones.

        Raises ConfigError where there are no good ones.
        """
        try:
            return Chosen(read_config(self._environment, self._path).config)
        except ConfigError as error:
            self.problem = str(error)
            last = self._recall()
            if last is None:
                raise
            _log.error("the settings are refused, the last good ones stay: %s", error)
            return Chosen(last, self.problem)

    def remember(self, state: StateDir) -> None:
        """Keep what is written now, if it is good. The daemon runs with it."""
        if self.problem:
            return
        body = {_FILE: str(self._file), _TEXT: self._text(), _VARIABLES: self._variables()}
        try:
            if state.read_document(_DOCUMENT, _SCHEMA) != body:
                state.write_document(_DOCUMENT, _SCHEMA, body)
        except (StoreError, OSError) as error:
            _log.error("the settings are not kept for a later start: %s", error)

    def reload(self, agent: Agent) -> bool:
        """Read the settings again; whether the policy must be put in force anew for them.

        What can change in a running daemon changes; what is refused leaves all as it was.
        """
        try:
            wanted = read_config(self._environment, self._path).config
        except ConfigError as error:
            self.problem = str(error)
            _log.error("the settings are refused, those in force stay: %s", error)
            return False
        self.problem = ""
        self.remember(agent.state)
        before, after = values(agent.config), values(wanted)
        changed = [key for key in after if before[key] != after[key]]
        self.waiting = tuple(key for key in changed if key not in LIVE)
        if self.waiting:
            _log.warning("changed settings wait for the next start: %s", ", ".join(self.waiting))
        live = {key: getattr(wanted, key) for key in changed if key in LIVE}
        if not live:
            return False
        agent.config = replace(agent.config, **live)
        agent.keeper.failsafe = agent.config.failsafe
        words = ", ".join(f"{key} is {after[key]}" for key in live if key != "failsafe")
        agent.emit("settings", f"settings changed: {words or 'failsafe'}", settings=sorted(live))
        return True

    def take_back(self, agent: Agent, before: AgentConfig, why: str) -> None:
        """Settings that `reload` changed did not come in force: those of before are in force.

        The next reload finds them changed again, and tries again.
        """
        agent.config = before
        agent.keeper.failsafe = before.failsafe
        self.problem = f"what is written could not be put in force: {why}"
        agent.emit("settings", f"the changed settings are taken back: {why}")

    @property
    def _file(self) -> Path:
        return self._path or Path(self._environment.get(PATH_VARIABLE) or DEFAULT_PATH)

    def _text(self) -> str:
        try:
            with self._file.open("rb") as stream:
                return stream.read(MAX_FILE_BYTES).decode("utf-8", "replace")
        except OSError:
            return ""

    def _variables(self) -> dict[str, str]:
        return {name: value for name, value in self._environment.items() if name.startswith(PREFIX)}

    def _recall(self) -> AgentConfig | None:
        """The last good settings, from the first state folder that has them."""
        for folder in self._state_folders():
            if not folder.is_dir():
                continue
            try:
                with StateDir(folder) as state:
                    body = state.read_document(_DOCUMENT, _SCHEMA)
                if body is not None and body[_FILE] == str(self._file):
                    return parse_config(
                        str(body[_TEXT]), f"{body[_FILE]} (kept)", dict(body[_VARIABLES])
                    ).config
            except (StoreError, ConfigError, OSError, KeyError, TypeError, ValueError) as error:
                _log.error("the last good settings in %s cannot be used: %s", folder, error)
        return None

    def _state_folders(self) -> tuple[Path, ...]:
        """Where the state may be, while the settings that say so are not good."""
        found = [
            self._environment.get(f"{PREFIX}STATE_DIR", ""),
            # A file that is TOML, with something in it that is refused.
            _state_dir_in(self._text()),
            self._environment.get("STATE_DIRECTORY", "").partition(":")[0],  # systemd.exec(5)
            str(AgentConfig().state_dir),
        ]
        return tuple(Path(each) for each in dict.fromkeys(found) if each.startswith("/"))


def load_again(agent: Agent) -> None:
    """Read settings, licenses and policy again, and put them in force. On the kernel thread.

    Where that fails half way, the settings stay, or are again, what the kernel decides by.
    """
    config, settings, control = agent.config, agent.settings, agent.kernel.control
    first = control.generation
    try:
        must_switch = settings is not None and settings.reload(agent)
        agent.licensing.load()
        agent.write_licenses()
        generation = control.generation
        agent.policy.load()
        if must_switch and control.generation == generation and agent.policy.compiled is not None:
            agent.policy.apply(agent.policy.compiled)  # the same tables, in another mode
    except Exception as error:
        if settings is not None and agent.config is not config:
            settings.take_back(agent, config, str(error))
            if control.generation != first:
                _switch_back(agent)
        raise


def _switch_back(agent: Agent) -> None:
    """The kernel has switched already, and what came after it failed."""
    compiled = agent.policy.compiled
    if compiled is None:
        return
    try:
        agent.policy.apply(agent.keeper.again(compiled.texts, agent.licenses()) or compiled)
    except (StoreError, BpfError, OSError) as error:
        # The switch is its first step: what fails here is once more what comes after.
        _log.error("%s", error)


def _state_dir_in(text: str) -> str:
    try:
        found = tomllib.loads(text).get("state_dir", "")
    except (tomllib.TOMLDecodeError, RecursionError):
        return ""
    return found if isinstance(found, str) else ""


def chosen(
    environment: Mapping[str, str] = os.environ,
    path: Path | None = None,
    *,
    tell: Callable[[str], object] = lambda _problem: None,
) -> tuple[SettingsKeeper, AgentConfig] | None:
    """The keeper, and the settings to start with; None where there are none: `tell` is told why."""
    keeper = SettingsKeeper(environment, path)
    try:
        return keeper, keeper.choose().config
    except ConfigError as error:
        tell(str(error))
        return None
