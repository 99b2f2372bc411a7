# SPDX-License-Identifier: Apache-2.0
"""A host that joins its control plane by itself, with a token its service manager holds.

For images and cloud-init: systemd hands the credential `licagent.join-token` to the daemon alone
(systemd.exec(5), LoadCredential=); one that is encrypted is decrypted before, by
licagent-join.service. It is read only while the host has not joined. A host that left, or was
decommissioned, keeps a note of it, and joins no more by a token that its image still holds: root
lets it come back, by `licagent enroll`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from licagent.local.errors import LocalError
from licagent.local.peer import Peer
from licagent.store.errors import StoreError
from licagent.store.statedir import StateDir

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent

_log: Final = logging.getLogger(__name__)

CREDENTIAL: Final = "licagent.join-token"
_NAMES: Final = (CREDENTIAL, f"{CREDENTIAL}.encrypted")
_LEFT: Final = "left"
_LEFT_SCHEMA: Final = "licagent.left/1"
_TOKEN_MAX_BYTES: Final = 16 * 1024
_AGAIN_FIRST_S: Final = 5.0
_AGAIN_MOST_S: Final = 300.0

Enroll = Callable[[Mapping[str, Any], Peer], Awaitable[object]]


def token(environment: Mapping[str, str] = os.environ) -> str:
    """The join token that the service manager holds; "" where it holds none."""
    folder = environment.get("CREDENTIALS_DIRECTORY", "")
    if not folder:
        return ""
    for name in _NAMES:
        try:
            with Path(folder, name).open("rb") as file:
                return file.read(_TOKEN_MAX_BYTES).decode("ascii", "replace").strip()
        except FileNotFoundError:
            continue
        except OSError as error:
            _log.error("the credential %s cannot be read: %s", name, error.strerror)
    return ""


def note_left(state: StateDir, why: str) -> None:
    """Remember, durably, that this host is to be nobody's. Raises StateWriteFailed."""
    state.write_document(_LEFT, _LEFT_SCHEMA, {"why": why, "at_unix_s": int(time.time())})


def forget_left(state: StateDir) -> None:
    """Root has let it join again."""
    state.delete_document(_LEFT)


def has_left(state: StateDir) -> bool:
    """Whether it left and was not let in again. A damaged note counts as well."""
    return _LEFT in state.names()


async def join(agent: Agent, enroll: Enroll) -> None:
    """Join, and try again until it is done. Never returns: a job of the daemon's.

    The network may come long after the daemon, and a control plane may be down for a while.
    """
    again_s = _AGAIN_FIRST_S
    said = ""
    while not _has_joined(agent) and (found := token()):
        if has_left(agent.state):
            _log.warning(
                "this host left its control plane, so the credential %s is not used; "
                "to let it join again: licagent enroll JOIN",
                CREDENTIAL,
            )
            break
        try:
            await enroll({"join": found, "identity": "keep"}, Peer(os.getpid(), 0, 0, frozenset()))
            _log.info("joined by the credential %s", CREDENTIAL)
            break
        except LocalError as error:
            if str(error) != said:
                said = str(error)
                _log.warning("not joined by the credential %s: %s", CREDENTIAL, said)
        await asyncio.sleep(again_s)
        again_s = min(2 * again_s, _AGAIN_MOST_S)
    await asyncio.Event().wait()


def _has_joined(agent: Agent) -> bool:
    try:
        return agent.link.identities.load() is not None
    except StoreError:
        return True  # it is somebody: root decides who, not a token in a file
