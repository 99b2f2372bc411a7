# SPDX-License-Identifier: Apache-2.0
"""URLs of PostgreSQL in libpq's forms: several hosts, and the one that takes changes."""

from __future__ import annotations

from typing import Final

from sqlalchemy import URL
from sqlalchemy.engine import make_url

_WRITABLE: Final = "target_session_attrs"


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
