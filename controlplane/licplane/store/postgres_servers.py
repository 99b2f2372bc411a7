# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL behind several addresses: which server counts, and whether it is still the same one.

Each promotion of a standby begins a new timeline, with a higher number than all before it. A
primary that was left behind and comes back still writes its old one. libpq's own choice
(`target_session_attrs=read-write`) cannot tell the two apart: both let themselves be written to.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import psycopg
from sqlalchemy import URL, Engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DisconnectionError

_QUERY: Final = (
    "SELECT (SELECT system_identifier FROM pg_control_system()),"
    " substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"
)
_LINEAGE: Final = "lineage"
_WRITABLE: Final = "target_session_attrs"

_log = logging.getLogger(__name__)
_Connection = psycopg.Connection[Any]
_Connect = Callable[..., _Connection]


class Lineage(NamedTuple):
    """Which history of a database a server writes."""

    system: int
    """Of the cluster; a physical standby has its primary's."""
    timeline: int
    """From 1; a promotion takes the next one."""

    def is_behind(self, other: Lineage | None) -> bool:
        """Whether the same cluster has gone on without this one."""
        return other is not None and self.system == other.system and self.timeline < other.timeline


def several_hosts(text: str) -> URL:
    """A URL; also in libpq's form with several hosts, HOST:PORT,HOST:PORT.

    Raises ArgumentError or ValueError for what is none.
    """
    scheme, separator, rest = text.partition("://")
    end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    user, at_sign, hosts = rest[:end].rpartition("@")
    if not scheme.startswith("postgresql") or "," not in hosts:
        return make_url(text)
    names, ports = zip(*map(_host_port, hosts.split(",")), strict=True)
    url = make_url(f"{scheme}{separator}{user}{at_sign}{rest[end:]}")
    if "host" in url.query or "port" in url.query:
        raise ValueError("hosts are named twice")
    where = {"host": ",".join(names)}
    if any(ports):
        where["port"] = ",".join(ports)
    return url.update_query_dict(where)


def _host_port(text: str) -> tuple[str, str]:
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    else:
        host, _, port = text.partition(":")
    if port and not port.isdecimal():
        raise ValueError("a port is a number")
    return host, port


def writable(url: URL) -> URL:
    """`url` with the demand that the server takes changes, unless it says what it wants."""
    if _WRITABLE in url.query:
        return url
    return url.update_query_dict({_WRITABLE: "read-write"})


def follow(engine: Engine) -> None:
    """Have `engine` connect to the newest timeline that it can reach, and never to one behind
    what it has seen."""
    servers = Servers(psycopg.connect)

    @event.listens_for(engine, "do_connect")
    def _connect(_dialect: Any, record: Any, _words: Any, arguments: Any) -> _Connection:
        connection, lineage = servers.connect(arguments)
        if record is not None:
            record.info[_LINEAGE] = lineage
        return connection

    @event.listens_for(engine, "checkout")
    def _check(_connection: Any, record: Any, _proxy: Any) -> None:
        lineage = record.info.get(_LINEAGE)
        if lineage is not None and lineage.is_behind(servers.newest):
            raise DisconnectionError("a standby was promoted since")  # the pool makes another one


def lineage_of(info: Mapping[str, Any]) -> Lineage | None:
    """The lineage of a connection by its `info`; None where the server does not tell."""
    found = info.get(_LINEAGE)
    return found if isinstance(found, Lineage) else None


class Servers:
    """Connects to one of several servers. Threads may share it."""

    def __init__(self, connect: _Connect) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self.newest: Lineage | None = None
        """Seen by this process."""

    def connect(self, arguments: dict[str, Any]) -> tuple[_Connection, Lineage | None]:
        """A connection, and what it is to.

        The first one looks at every host, for only so a primary that was left behind is told from
        the one that counts. Later ones take libpq's choice while that is not behind. Raises
        psycopg.OperationalError.
        """
        hosts = _each(arguments)
        if self.newest is not None or len(hosts) == 1:
            connection = self._connect(**arguments)
            lineage = _ask(connection)
            if self._takes(lineage):
                return connection, lineage
            connection.close()
            if len(hosts) == 1:
                raise self._behind()
        connection, lineage = self._newest_of(hosts)
        if self._takes(lineage):
            return connection, lineage
        connection.close()
        raise self._behind()

    def _newest_of(self, hosts: list[dict[str, Any]]) -> tuple[_Connection, Lineage | None]:
        found: tuple[_Connection, Lineage | None] | None = None
        errors = []
        for arguments in hosts:
            try:
                connection = self._connect(**arguments)
            except psycopg.OperationalError as error:
                errors.append(str(error).strip())
                continue
            lineage = _ask(connection)
            if found is None:
                found = connection, lineage
            elif lineage is not None and found[1] is not None and found[1].is_behind(lineage):
                found[0].close()
                found = connection, lineage
            else:
                connection.close()
        if found is None:
            raise psycopg.OperationalError("; ".join(errors))
        return found

    def _takes(self, lineage: Lineage | None) -> bool:
        if lineage is None:
            return True
        with self._lock:
            if lineage.is_behind(self.newest):
                return False
            if self.newest is not None and lineage != self.newest:
                _log.warning(
                    "the database goes on at another server: timeline %d instead of %d",
                    lineage.timeline,
                    self.newest.timeline,
                )
            self.newest = lineage
        return True

    def _behind(self) -> psycopg.OperationalError:
        seen = self.newest.timeline if self.newest else 0
        return psycopg.OperationalError(
            f"only a primary that was left behind takes changes (timeline {seen} was seen before)"
        )


def _each(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """What connects to each host alone; the same as it is where they are named another way."""
    names = str(arguments.get("host") or "").split(",")
    ports = str(arguments.get("port") or "").split(",")
    if len(names) == 1 or "hostaddr" in arguments:
        return [arguments]
    if len(ports) == 1:
        ports *= len(names)
    return [
        {**arguments, "host": name, "port": port or None}
        for name, port in zip(names, ports, strict=True)
    ]


def _ask(connection: _Connection) -> Lineage | None:
    """None for a server that does not tell: a standby, or not quite PostgreSQL."""
    before, connection.autocommit = connection.autocommit, True
    try:
        row = connection.execute(_QUERY).fetchone()
    except psycopg.Error:
        return None
    finally:
        if not connection.closed:
            connection.autocommit = before
    return None if row is None else Lineage(int(row[0]), int(row[1], 16))
