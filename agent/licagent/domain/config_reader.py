# SPDX-License-Identifier: Apache-2.0
"""agent.toml and LICAGENT_* in the environment -> AgentConfig.

Each setting is one row of `SETTINGS`. The environment wins over the file, the file over the
default. A configuration with any problem is refused whole, with every problem named: an agent
that enforces must not run on half of what was meant.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from licagent.domain.config import AgentConfig, FailsafeSetting
from licagent.domain.footprint import FootprintSpec
from licagent.domain.setting_checks import (
    BadValue,
    Setting,
    amount,
    check_cgroup_root,
    check_control,
    check_labels,
    check_metrics_listen,
    check_path,
    check_socket_folder,
    labels_text,
    likely,
    words,
)
from licagent.domain.setting_tables import check_failsafe, check_footprints, tables_text
from licagent.domain.toml_lines import LineIndex

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_PATH: Final = Path("/etc/licagent/agent.toml")
PATH_VARIABLE: Final = "LICAGENT_CONFIG"
PREFIX: Final = "LICAGENT_"

MAX_FILE_BYTES: Final = 1024 * 1024
"""A larger agent.toml is a mistake, not a configuration."""

UPLINK_VARIABLE: Final = "LICAGENT_UPLINK"
"""Of the unit, no setting: where the daemon's way out listens (licagent.uplink)."""

_OURS: Final = frozenset({PATH_VARIABLE, UPLINK_VARIABLE})

REPORT_INTERVAL_MAX_S: Final = 3600
"""Longest pause between reports: what the control plane shows of a host must not be older."""

METERING_INTERVAL_MAX_S: Final = 3600
"""Longest time between commits of usage: what a host that loses power has lost."""

SPOOL_MIN_BYTES: Final = 16 * 1024 * 1024
SPOOL_MAX_BYTES: Final = 1024**4

SETTINGS: Final[Mapping[str, Setting]] = MappingProxyType(
    {
        "mode": words("observe", "enforce"),
        "config_dir": Setting(check_path, str),
        "state_dir": Setting(check_path, str),
        "runtime_dir": Setting(check_socket_folder, str),
        "bpffs_dir": Setting(check_path, str),
        "cgroup_root": Setting(check_cgroup_root, str),
        "loader": words("auto", "prebuilt", "bcc"),
        "labels": Setting(check_labels, labels_text),
        "failsafe": Setting(check_failsafe, tables_text),
        "existing_sockets": words("cut", "keep"),
        "control": Setting(check_control, str),
        "report_interval_s": amount("seconds", 0, REPORT_INTERVAL_MAX_S),
        "metering": words("on", "off"),
        "metering_interval_s": amount("seconds", 1, METERING_INTERVAL_MAX_S),
        "spool_max_bytes": amount("bytes", SPOOL_MIN_BYTES, SPOOL_MAX_BYTES),
        "footprint": Setting(check_footprints, tables_text),
        "metrics_listen": Setting(check_metrics_listen, str),
    }
)
"""Every key of agent.toml; LICAGENT_<KEY> in the environment is the same key."""


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing wrong: where it is written, what is wrong, what to write instead."""

    file: str  # a file's name, or "environment"
    line: int  # 1.. ; 0 where there is no line
    key: str
    message: str
    suggestion: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        key = f" {self.key}:" if self.key else ""
        hint = f" ({self.suggestion})" if self.suggestion else ""
        return f"{place}:{key} {self.message}{hint}"


class ConfigError(Exception):
    """The configuration cannot be used; `problems` has everything wrong with it."""

    def __init__(self, problems: tuple[ConfigProblem, ...]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration, and where each of its values was written."""

    config: AgentConfig
    sources: Mapping[str, str]  # key -> "default", "LICAGENT_MODE" or "/etc/.../agent.toml:3"


def parse_config(text: str, file: str, environment: Mapping[str, str]) -> Settings:
    """The settings of `text` (agent.toml, "" for none) and `environment`. ConfigError if bad."""
    problems: list[ConfigProblem] = []
    values: dict[str, object] = {}
    sources = dict.fromkeys(SETTINGS, "default")
    lines = LineIndex(text)
    for key, value in _document(text, file).items():
        line = lines.line((key,))
        if key not in SETTINGS:
            problem = ConfigProblem(file, line, key, "unknown key", likely(key, SETTINGS))
            problems.append(problem)
            continue
        try:
            values[key] = SETTINGS[key].from_file(value)
            sources[key] = f"{file}:{line}"
        except BadValue as bad:
            problems.append(ConfigProblem(file, line, key, bad.message, bad.suggestion))
    for name, text_value in sorted(environment.items()):
        if not name.startswith(PREFIX) or name in _OURS:
            continue
        key = name.removeprefix(PREFIX).lower()
        if key not in SETTINGS:
            # Other programs may use the prefix (tests do); only a likely slip is a problem.
            if meant := likely(key, SETTINGS):
                meant = f"did you mean {PREFIX}{meant.split()[-1].upper()}"
                unknown = ConfigProblem("environment", 0, name, "unknown variable", meant)
                problems.append(unknown)
            continue
        try:
            values[key] = SETTINGS[key].from_file(SETTINGS[key].from_text(text_value))
            sources[key] = name
        except BadValue as bad:
            problems.append(ConfigProblem("environment", 0, name, bad.message, bad.suggestion))
    if problems:
        raise ConfigError(tuple(problems))
    return Settings(AgentConfig(**values), MappingProxyType(sources))  # type: ignore[arg-type]


def read_config(environment: Mapping[str, str], path: Path | None = None) -> Settings:
    """The settings of the file at `path`, else LICAGENT_CONFIG, else the default path.

    A file that was named must be there; the default one may be missing. ConfigError if bad.
    """
    named = path or (Path(environment[PATH_VARIABLE]) if environment.get(PATH_VARIABLE) else None)
    file = named or DEFAULT_PATH
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
        text = data.decode("utf-8")
    except FileNotFoundError as error:
        if named is not None:
            raise _unreadable(file, "there is no such file", "name another file") from error
        text = ""
    except (OSError, ValueError) as error:
        raise _unreadable(file, str(error), "") from error
    return parse_config(text, str(file), environment)


def describe(settings: Settings) -> list[dict[str, str]]:
    """Rows of key, value and source, as `config check` shows them."""
    return [
        {"key": key, "value": value, "source": settings.sources[key]}
        for key, value in values(settings.config).items()
    ]


def values(config: AgentConfig) -> dict[str, str]:
    """Every setting as it would be written, so that two configurations can be compared."""
    return {key: _written(getattr(config, key)) for key in SETTINGS}


def _document(text: str, file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        found = re.search(r"at line (\d+)", str(error))
        at_end = "at end of document" in str(error)
        line = int(found[1]) if found else max(1, len(text.splitlines())) if at_end else 0
        raise ConfigError((ConfigProblem(file, line, "", f"not TOML: {error}"),)) from error


def _written(value: object) -> str:
    match value:
        case None:
            return "auto"
        case bool():
            return str(value).lower()
        case tuple():
            return "; ".join(
                " ".join((entry.direction, entry.protocol, entry.cidr, ",".join(entry.ports)))
                if isinstance(entry, FailsafeSetting)
                else _footprint_written(entry)
                for entry in value
            )
        case MappingProxyType() | dict():
            return ",".join(f"{name}={text}" for name, text in sorted(value.items()))
    return str(value)


def _footprint_written(spec: FootprintSpec) -> str:
    """Its name and path, and what is not the default."""
    more = [
        f"{each.name}={getattr(spec, each.name)}"
        for each in fields(FootprintSpec)
        if each.name not in ("name", "path") and getattr(spec, each.name) != each.default
    ]
    return " ".join((spec.name, spec.path, *more))


def _unreadable(file: Path, message: str, suggestion: str) -> ConfigError:
    return ConfigError((ConfigProblem(str(file), 0, "", message, suggestion),))
