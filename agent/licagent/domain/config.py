# SPDX-License-Identifier: Apache-2.0
"""agent.toml and LICAGENT_* in the environment -> AgentConfig.

Each setting is one row of `SETTINGS`. The environment wins over the file, the file over the
default. A configuration with any problem is refused whole, with every problem named: an agent
that enforces must not run on half of what was meant.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from licagent.domain.footprint import FootprintSpec, fault_of
from licagent.domain.toml_lines import LineIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

DEFAULT_PATH: Final = Path("/etc/licagent/agent.toml")
PATH_VARIABLE: Final = "LICAGENT_CONFIG"
PREFIX: Final = "LICAGENT_"

SOCKET_NAME: Final = "licagent.sock"

SOCKET_PATH_MAX_BYTES: Final = 107
"""sun_path in struct sockaddr_un has 108 bytes, one of them for the end (unix(7))."""

MAX_FILE_BYTES: Final = 1024 * 1024
"""A larger agent.toml is a mistake, not a configuration."""

RESOLVERS: Final = "resolvers"
"""As the cidr of a failsafe entry: the name servers of this host, whatever they are now."""

UPLINK_VARIABLE: Final = "LICAGENT_UPLINK"
"""Of the unit, no setting: where the daemon's way out listens (licagent.uplink)."""

_OURS: Final = frozenset({PATH_VARIABLE, UPLINK_VARIABLE})


@dataclass(frozen=True, slots=True)
class FailsafeSetting:
    """One line of the failsafe list as written; the compiler turns it into table entries."""

    direction: str  # "out": destinations; "in": ports of this host
    cidr: str  # a network, "any", or "resolvers": the name servers of resolv.conf(5)
    ports: tuple[str, ...]  # "53", "67-68"; empty: every port
    protocol: str  # tcp | udp | icmp | sctp | other | any


DEFAULT_FAILSAFE: Final = (
    # What a host needs to have an address, a name and the time, and what its owner needs to
    # get in. Loopback needs no entry: what no resource names passes anyway.
    FailsafeSetting("out", "any", ("67-68", "546-547"), "udp"),  # DHCP, DHCPv6
    # Names from this host's own resolvers only: port 53 of everybody would be a way round.
    FailsafeSetting("out", RESOLVERS, ("53",), "udp"),
    FailsafeSetting("out", RESOLVERS, ("53",), "tcp"),
    FailsafeSetting("out", "any", ("123",), "udp"),  # NTP
    FailsafeSetting("out", "fe80::/10", (), "icmp"),  # neighbours and routers (RFC 4861):
    FailsafeSetting("out", "ff02::/16", (), "icmp"),  # without them there is no IPv6
    FailsafeSetting("in", "any", ("68", "546"), "udp"),
    FailsafeSetting("in", "any", ("22",), "tcp"),  # SSH
)
"""The failsafe list where agent.toml has none of its own."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """The settings of one agent. Defaults are those of a packaged installation."""

    mode: str = "observe"  # observe: refuse nothing; enforce: each resource's own mode rules
    config_dir: Path = Path("/etc/licagent")
    state_dir: Path = Path("/var/lib/licagent")
    runtime_dir: Path = Path("/run/licagent")
    bpffs_dir: Path = Path("/sys/fs/bpf/licagent")
    cgroup_root: Path | None = None  # None ("auto"): the cgroup v2 mount
    loader: str = "auto"  # auto | prebuilt | bcc
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    failsafe: tuple[FailsafeSetting, ...] = DEFAULT_FAILSAFE  # what no policy can deny
    existing_sockets: str = "cut"  # unlicensed sockets older than the agent: cut | keep
    control: str = "auto"  # control plane: auto (as enrolled) | off | host:port instead
    report_interval_s: int = 0  # between reports of host state; 0: as the control plane says
    metering: str = "on"  # on | off
    metering_interval_s: int = 5  # between commits of usage; longer while the spool fills up
    spool_max_bytes: int = 512 * 1024 * 1024  # of usage on disk
    footprint: tuple[FootprintSpec, ...] = ()  # storage that is measured
    metrics_listen: str = "off"  # Prometheus and health over plain HTTP: off | host:port

    @property
    def licenses_dir(self) -> Path:
        """Where *.lic stand."""
        return self.config_dir / "licenses"

    @property
    def policy_dir(self) -> Path:
        """Where the policy's *.toml stand."""
        return self.config_dir / "policy.d"

    @property
    def trust_path(self) -> Path:
        """The issuers' public keys (JWKS)."""
        return self.config_dir / "trust.jwks"

    @property
    def usage_dir(self) -> Path:
        """The ledger of usage."""
        return self.state_dir / "usage"

    @property
    def socket_path(self) -> Path:
        """The local API's socket."""
        return self.runtime_dir / SOCKET_NAME


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


class _Bad(Exception):
    def __init__(self, message: str, suggestion: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.suggestion = suggestion


@dataclass(frozen=True, slots=True)
class _Setting:
    from_file: Callable[[Any], object]
    from_text: Callable[[str], object]  # the environment's form, before from_file


def _words(*words: str) -> _Setting:
    def check(value: Any) -> object:
        if not isinstance(value, str) or value not in words:
            raise _Bad(f"{value!r} is not one of {', '.join(words)}", _likely(str(value), words))
        return value

    return _Setting(check, str)


def _path(value: Any) -> object:
    if not isinstance(value, str) or not value:
        raise _Bad(f"{value!r} is not a path")
    if "\0" in value or not value.startswith("/"):
        raise _Bad(f"{value!r} is not an absolute path", "start it with /")
    return Path(value)


def _socket_folder(value: Any) -> object:
    path = _path(value)
    over = len(f"{value}/{SOCKET_NAME}".encode()) - SOCKET_PATH_MAX_BYTES
    if over > 0:
        raise _Bad(
            f"{value!r} is too long for the path of a socket, by {over} bytes",
            "name a shorter folder",
        )
    return path


def _cgroup_root(value: Any) -> object:
    return None if value == "auto" else _path(value)


_LABEL: Final = re.compile(r"[a-z0-9][a-z0-9._/-]{0,62}")


def _labels(value: Any) -> object:
    if not isinstance(value, dict):
        raise _Bad("labels must be a table", 'labels = { environment = "production" }')
    for name, text in value.items():
        if not _LABEL.fullmatch(name):
            raise _Bad(f"{name!r} is no label name", "lower-case letters, digits and . _ / -")
        if not isinstance(text, str) or not text or len(text) > 255:
            raise _Bad(f"label {name}: {text!r} is not a text of 1 to 255 characters")
    return MappingProxyType(dict(value))


def _labels_text(text: str) -> object:
    labels: dict[str, object] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise _Bad(f"{part!r} has no =", "LICAGENT_LABELS=environment=production,region=eu")
        labels[name.strip()] = value.strip()
    return labels


_PORTS: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
_PROTOCOLS: Final = ("tcp", "udp", "icmp", "sctp", "other", "any")


def _failsafe(value: Any) -> object:
    if not isinstance(value, list):
        hint = 'failsafe = [{ direction = "in", ports = ["22"], protocol = "tcp" }]'
        raise _Bad("failsafe must be a list", hint)
    return tuple(_failsafe_entry(entry) for entry in value)


def _failsafe_entry(entry: Any) -> FailsafeSetting:
    keys = ("direction", "cidr", "ports", "protocol")
    if not isinstance(entry, dict):
        raise _Bad(f"{entry!r} is no table", '{ cidr = "10.0.0.1/32", ports = ["443"] }')
    for key in entry:
        if key not in keys:
            raise _Bad(f"unknown key {key!r}", _likely(key, keys))
    direction, cidr = entry.get("direction", "out"), entry.get("cidr", "any")
    ports, protocol = entry.get("ports", []), entry.get("protocol", "any")
    if direction not in ("out", "in"):
        raise _Bad(f"direction {direction!r} is neither out nor in")
    if protocol not in _PROTOCOLS:
        known = ", ".join(_PROTOCOLS)
        raise _Bad(f"protocol {protocol!r} is none of {known}", _likely(str(protocol), _PROTOCOLS))
    if direction == "in" and cidr != "any":
        raise _Bad("inbound entries have ports and a protocol only", "leave cidr out")
    if cidr not in ("any", RESOLVERS):
        _check_network(cidr)
    if not isinstance(ports, list):
        raise _Bad(f"ports {ports!r} is not a list", 'ports = ["22", "6000-6010"]')
    for port in ports:
        match = _PORTS.fullmatch(port) if isinstance(port, str) else None
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not 1 <= first <= last <= 65535:
            raise _Bad(f"{port!r} is no port or range of ports", '"22" or "6000-6010"')
    if ports and protocol not in ("tcp", "udp", "sctp", "any"):
        raise _Bad(f"{protocol} has no ports", "leave ports out")
    if direction == "in" and not ports and protocol in ("any", "tcp", "udp"):
        raise _Bad("an inbound entry without ports would open the whole host", 'ports = ["22"]')
    return FailsafeSetting(direction, cidr, tuple(ports), protocol)


def _check_network(cidr: object) -> None:
    if not isinstance(cidr, str):
        raise _Bad(f"cidr {cidr!r} is not a text")
    try:
        ipaddress.ip_network(cidr)
    except ValueError as error:
        try:
            meant = str(ipaddress.ip_network(cidr, strict=False))
        except ValueError:
            raise _Bad(f"cidr {cidr!r} is no network: {error}") from error
        raise _Bad(f"cidr {cidr!r} has host bits set", f"write {meant}") from error


REPORT_INTERVAL_MAX_S: Final = 3600
"""Longest pause between reports: what the control plane shows of a host must not be older."""

_HOST: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\]")


def _control(value: Any) -> object:
    hint = '"auto", "off" or "control.example.org:8443"'
    if not isinstance(value, str):
        raise _Bad(f"{value!r} is not a text", hint)
    if value in ("auto", "off"):
        return value
    host, colon, port = value.rpartition(":")
    if not colon or not _HOST.fullmatch(host):
        raise _Bad(f"{value!r} is no address of a control plane", hint)
    if not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not 1 <= int(port) <= 65535:
        raise _Bad(f"{value!r}: {port!r} is no port", hint)
    return value


def _amount(unit: str, minimum: int, maximum: int) -> _Setting:
    def check(value: Any) -> object:
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise _Bad(f"{value!r} is not a number of {unit}", f"{minimum} to {maximum}")
        return value

    def from_text(text: str) -> object:
        return int(text) if re.fullmatch(r"[0-9]{1,15}", text, re.ASCII) else text

    return _Setting(check, from_text)


METRICS_EXAMPLE: Final = "127.0.0.1:9795"
"""Where documents and roles let the agent serve its metrics; nothing listens by default."""


def _metrics_listen(value: Any) -> object:
    hint = f'"off", "{METRICS_EXAMPLE}" or "[::1]:9795"'
    if value == "off":
        return value
    if not isinstance(value, str):
        raise _Bad(f"{value!r} is not a text", hint)
    host, colon, port = value.rpartition(":")
    try:
        # An address, not a name: what is served where must not depend on a resolver.
        ipaddress.ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError:
        raise _Bad(f"{value!r} is no address and port of this host", hint) from None
    if (":" in host) != host.startswith("["):
        raise _Bad(f"{value!r}: an IPv6 address stands in brackets", hint)
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or int(port) > 65535:
        raise _Bad(f"{value!r}: {port!r} is no port", hint)
    return value


METERING_INTERVAL_MAX_S: Final = 3600
"""Longest time between commits of usage: what a host that loses power has lost."""

SPOOL_MIN_BYTES: Final = 16 * 1024 * 1024
SPOOL_MAX_BYTES: Final = 1024**4

_FOOTPRINTS_MAX: Final = 1000


def _footprints(value: Any) -> object:
    hint = '[[footprint]] with name = "home", path = "/home"'
    if not isinstance(value, list):
        raise _Bad("footprint must be a list of tables", hint)
    if len(value) > _FOOTPRINTS_MAX:
        raise _Bad(f"more than {_FOOTPRINTS_MAX} footprints")
    found = tuple(_footprint(entry) for entry in value)
    names = [each.name for each in found]
    for name in names:
        if names.count(name) > 1:
            raise _Bad(f"two footprints have the name {name!r}", "names are unique")
    return found


def _footprint(entry: Any) -> FootprintSpec:
    kinds = {each.name: type(each.default) for each in fields(FootprintSpec)}
    kinds |= {"name": str, "path": str}
    if not isinstance(entry, dict):
        raise _Bad(f"{entry!r} is no table", '{ name = "home", path = "/home" }')
    for key, value in entry.items():
        if key not in kinds:
            raise _Bad(f"unknown key {key!r}", _likely(key, kinds))
        if key in ("user", "project") and type(value) is int:
            entry = {**entry, key: str(value)}
        elif type(value) is not kinds[key]:
            raise _Bad(f"{key}: {value!r} is not {_KIND_WORDS[kinds[key]]}")
    for key in ("name", "path"):
        if key not in entry:
            raise _Bad(f"a footprint needs a {key}", 'name = "home", path = "/home"')
    spec = FootprintSpec(**entry)
    if fault := fault_of(spec):
        raise _Bad(f"footprint {spec.name!r}: {fault}")
    return spec


_KIND_WORDS: Final = {str: "a text", int: "a number", bool: "true or false"}


def _tables_text(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise _Bad(f"not a TOML list: {error}", '[{ cidr = "10.0.0.1/32" }]') from error


SETTINGS: Final[Mapping[str, _Setting]] = MappingProxyType(
    {
        "mode": _words("observe", "enforce"),
        "config_dir": _Setting(_path, str),
        "state_dir": _Setting(_path, str),
        "runtime_dir": _Setting(_socket_folder, str),
        "bpffs_dir": _Setting(_path, str),
        "cgroup_root": _Setting(_cgroup_root, str),
        "loader": _words("auto", "prebuilt", "bcc"),
        "labels": _Setting(_labels, _labels_text),
        "failsafe": _Setting(_failsafe, _tables_text),
        "existing_sockets": _words("cut", "keep"),
        "control": _Setting(_control, str),
        "report_interval_s": _amount("seconds", 0, REPORT_INTERVAL_MAX_S),
        "metering": _words("on", "off"),
        "metering_interval_s": _amount("seconds", 1, METERING_INTERVAL_MAX_S),
        "spool_max_bytes": _amount("bytes", SPOOL_MIN_BYTES, SPOOL_MAX_BYTES),
        "footprint": _Setting(_footprints, _tables_text),
        "metrics_listen": _Setting(_metrics_listen, str),
    }
)
"""Every key of agent.toml; LICAGENT_<KEY> in the environment is the same key."""


def parse_config(text: str, file: str, environment: Mapping[str, str]) -> Settings:
    """The settings of `text` (agent.toml, "" for none) and `environment`. ConfigError if bad."""
    problems: list[ConfigProblem] = []
    values: dict[str, object] = {}
    sources = dict.fromkeys(SETTINGS, "default")
    lines = LineIndex(text)
    for key, value in _document(text, file).items():
        line = lines.line((key,))
        if key not in SETTINGS:
            problem = ConfigProblem(file, line, key, "unknown key", _likely(key, SETTINGS))
            problems.append(problem)
            continue
        try:
            values[key] = SETTINGS[key].from_file(value)
            sources[key] = f"{file}:{line}"
        except _Bad as bad:
            problems.append(ConfigProblem(file, line, key, bad.message, bad.suggestion))
    for name, text_value in sorted(environment.items()):
        if not name.startswith(PREFIX) or name in _OURS:
            continue
        key = name.removeprefix(PREFIX).lower()
        if key not in SETTINGS:
            # Other programs may use the prefix (tests do); only a likely slip is a problem.
            if likely := _likely(key, SETTINGS):
                likely = f"did you mean {PREFIX}{likely.split()[-1].upper()}"
                unknown = ConfigProblem("environment", 0, name, "unknown variable", likely)
                problems.append(unknown)
            continue
        try:
            values[key] = SETTINGS[key].from_file(SETTINGS[key].from_text(text_value))
            sources[key] = name
        except _Bad as bad:
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


def _likely(word: str, known: Collection[str]) -> str:
    from licagent.domain.problem import nearest  # brings difflib: on the error path only

    match = nearest(word, known)
    return f"did you mean {match}" if match else ""


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
