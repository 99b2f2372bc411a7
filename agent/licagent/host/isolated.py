# SPDX-License-Identifier: Apache-2.0
"""Netlink work in a short-lived process, so that its memory does not stay.

The daemon promises to stay small; importing pyroute2 would cost it about 25 MB for good. These
functions start `python -m licagent.host.isolated`, which takes 0.3 s, and speak JSON with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from licagent.domain.tables import Protocol
from licagent.host import netwatch, sweep
from licagent.host.sockets import Endpoint, Holder, Socket


class IsolatedFailed(RuntimeError):
    """The helper process did not answer as it should."""


def list_sockets(timeout_s: float = 30.0) -> tuple[sweep.PlacedSocket, ...]:
    """`sweep.list_everywhere`, elsewhere. Blocks; call it from a thread."""
    return tuple(_placed(item) for item in _ask("sockets", None, timeout_s))


def destroy_sockets(cookies: Iterable[int], timeout_s: float = 30.0) -> sweep.Swept:
    """`sweep.destroy_everywhere`, elsewhere. Blocks; call it from a thread."""
    answer = _ask("destroy", sorted(cookies), timeout_s)
    return sweep.Swept(
        frozenset(answer["ended"]),
        frozenset(answer["gone"]),
        tuple((cookie, why) for cookie, why in answer["failed"]),
    )


def list_links(timeout_s: float = 10.0) -> tuple[netwatch.Link, ...]:
    """`netwatch.list_links`, elsewhere. Blocks; call it from a thread."""
    return tuple(netwatch.Link(**item) for item in _ask("links", None, timeout_s))


def _ask(operation: str, argument: Any, timeout_s: float) -> Any:
    # -P: the current folder is not searched for modules by a process that runs as root.
    command = [sys.executable, "-P", "-m", "licagent.host.isolated", operation]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(argument).encode(),
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise IsolatedFailed(f"no answer to {operation!r} within {timeout_s} s") from error
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise IsolatedFailed(f"{operation!r} ended with {done.returncode}: {words[-1]}")
    return json.loads(done.stdout)


def _placed(item: dict[str, Any]) -> sweep.PlacedSocket:
    fields = item["socket"]
    return sweep.PlacedSocket(
        Socket(
            **{
                **fields,
                "protocol": Protocol(fields["protocol"]),
                "local": Endpoint(**fields["local"]),
                "remote": Endpoint(**fields["remote"]),
            }
        ),
        item["namespace"],
        tuple(Holder(**holder) for holder in item["holders"]),
    )


def _serve(operation: str, argument: Any) -> Any:
    if operation == "sockets":
        return [asdict(placed) for placed in sweep.list_everywhere()]
    if operation == "destroy":
        swept = sweep.destroy_everywhere(argument)
        return {
            "ended": sorted(swept.ended),
            "gone": sorted(swept.gone),
            "failed": list(swept.failed),
        }
    if operation == "links":
        return [asdict(link) for link in netwatch.list_links()]
    raise SystemExit(f"unknown operation {operation!r}")


if __name__ == "__main__":
    json.dump(_serve(sys.argv[1], json.load(sys.stdin)), sys.stdout)
