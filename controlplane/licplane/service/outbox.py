# SPDX-License-Identifier: Apache-2.0
"""Delivering what triggers and budgets have to tell, again and again until somebody took it.

Webhooks are signed as Standard Webhooks are (standardwebhooks.com): `webhook-id`, which is also
the idempotency key and the same in each try, `webhook-timestamp`, and `webhook-signature`, an
HMAC-SHA256 of id, timestamp and body. A delivery may come twice (an answer that was lost), never
as another one: who receives it keeps the id.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import os
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from licplane.service.billing.reading import READERS, Notify, parsed
from licplane.service.core import Core
from licplane.store.database import Store
from licplane.store.deliveries import Delivery
from licplane.store.reader import Reader

if TYPE_CHECKING:
    pass

AT_ONCE: Final = 20
"""Deliveries that are tried one after the other, before other work is looked at."""
ROUND_S: Final = 5.0
"""After so long the rest waits for the next round: bills and sums are made by the same thread."""
FIRST_RETRY_MS: Final = 5_000
LONGEST_RETRY_MS: Final = 3_600_000
GIVEN_UP_MS: Final = 3 * 86_400_000
"""A delivery that nobody took for so long has failed, and says so in the list."""
_TIMEOUT_S: Final = 10.0
_COMMAND_S: Final = 30.0
_LONGEST_MS: Final = {"log": 0, "webhook": 19_000, "command": int(_COMMAND_S * 1000)}
_SECRET_MAX: Final = 4_096
_PROBLEM_MAX: Final = 300
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

log = logging.getLogger("licplane.billing")


class Undelivered(Exception):
    """A try that failed. `final`: no further one would do better."""

    def __init__(self, why: str, *, final: bool = False) -> None:
        super().__init__(why)
        self.final = final


class Outbox:
    """Delivers what is due."""

    def __init__(self, core: Core) -> None:
        self._store: Store = core.store
        self._now_ms: Callable[[], int] = core.now_ms
        self._commands = core.settings.commands_folder

    def deliver(self, leads: Callable[[int], bool] = lambda _ms: True) -> int:
        """Try what is due, for ROUND_S at most and as long as `leads` says that this replica does
        the regular work, also for so many ms from now; how many were tried."""
        end_s = time.monotonic() + ROUND_S
        tried = 0
        with self._store.reading() as reader:
            due = reader.due_deliveries(self._now_ms(), AT_ONCE)
            notify = {one.delivery: _notify_of(reader, one) for one in due}
        for one in due:
            if (tried and time.monotonic() >= end_s) or not leads(_LONGEST_MS[one.channel]):
                break
            done = self._tried(one, notify[one.delivery])
            tried += 1
            with self._store.recording() as recorder:
                recorder.mark_delivery(done)
        return tried

    def _tried(self, one: Delivery, notify: Notify | None) -> Delivery:
        attempts = one.attempts + 1
        try:
            self._send(one, notify)
        except Undelivered as problem:
            now_ms = self._now_ms()
            why = str(problem)[:_PROBLEM_MAX]
            log.warning("%s %s to %s: %s", one.kind, one.name, one.target, why)
            if problem.final or now_ms - one.created_at_unix_ms >= GIVEN_UP_MS:
                return replace(
                    one, state="failed", attempts=attempts, done_at_unix_ms=now_ms, problem=why
                )
            return replace(
                one,
                attempts=attempts,
                next_at_unix_ms=now_ms + retry_ms(attempts),
                problem=why,
            )
        return replace(
            one,
            state="delivered",
            attempts=attempts,
            done_at_unix_ms=self._now_ms(),
            problem="",
        )

    def _send(self, one: Delivery, notify: Notify | None) -> None:
        if one.channel == "log":
            log.warning("%s %s: %s", one.kind, one.name, one.event)
        elif one.channel == "command":
            self._run(one)
        else:
            if notify is None:
                raise Undelivered("nobody wants it any more", final=True)
            self._post(one, _secret(notify))

    def _post(self, one: Delivery, secret: bytes) -> None:
        import httpx

        limits = httpx.Timeout(_TIMEOUT_S, connect=4.0, write=4.0, pool=1.0)
        body = one.event.encode()
        headers = {
            "content-type": "application/cloudevents+json",
            "user-agent": "licplane",
            "idempotency-key": one.delivery,
            **signed_headers(secret, one.delivery, self._now_ms() // 1000, body),
        }
        try:
            # What it says besides its status is not read: that could take for ever.
            with (
                httpx.Client(timeout=limits, follow_redirects=False, trust_env=False) as client,
                client.stream("POST", one.target, content=body, headers=headers) as answer,
            ):
                status: int = answer.status_code
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise Undelivered(f"{type(error).__name__}: {error}") from error
        if status == 410:
            raise Undelivered("it answered 410: nobody wants it any more", final=True)
        if not 200 <= status < 300:
            raise Undelivered(f"it answered {status}")

    def _run(self, one: Delivery) -> None:
        if not self._commands:
            raise Undelivered("this server runs no commands (serve --trigger-commands DIR)")
        path = Path(self._commands) / one.target
        try:
            done = subprocess.run(
                [path],
                input=one.event.encode(),
                env={"PATH": _PATH, "LICPLANE_DELIVERY": one.delivery},
                cwd="/",
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=_COMMAND_S,
                check=False,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            raise Undelivered(f"it ran longer than {_COMMAND_S:g} s") from error
        except OSError as error:
            raise Undelivered(f"it does not start: {error.strerror}") from error
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise Undelivered(f"it ended with {done.returncode}: {said[-1] if said else ''}")


def retry_ms(attempts: int) -> int:
    """When to try again: later each time, and not all at once."""
    longest = min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** min(attempts - 1, 20))
    return int(longest * random.uniform(0.75, 1.25))  # noqa: S311 - spreads load, hides nothing


def signed_headers(secret: bytes, identity: str, at_s: int, body: bytes) -> dict[str, str]:
    """Headers of Standard Webhooks."""
    words = f"{identity}.{at_s}.".encode() + body
    signature = base64.b64encode(hmac.new(secret, words, hashlib.sha256).digest()).decode()
    return {
        "webhook-id": identity,
        "webhook-timestamp": str(at_s),
        "webhook-signature": f"v1,{signature}",
    }


def secret_bytes(text: str) -> bytes:
    """`whsec_` and base64, as Standard Webhooks writes secrets, or the text itself."""
    if text.startswith("whsec_"):
        try:
            return base64.b64decode(text.removeprefix("whsec_"), validate=True)
        except (binascii.Error, ValueError):
            pass
    return text.encode()


def _secret(notify: Notify) -> bytes:
    if not notify.secret_file:
        return secret_bytes(notify.secret)
    try:
        descriptor = os.open(notify.secret_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            text = file.read(_SECRET_MAX).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Undelivered(f"its secret cannot be read: {error}") from error
    if len(text) < 16:
        raise Undelivered("its secret has fewer than 16 characters")
    return secret_bytes(text)


def _notify_of(reader: Reader, one: Delivery) -> Notify | None:
    """What the trigger or budget says now about this place."""
    for document in reader.billing_documents(one.kind):
        if document.name == one.name:
            found = READERS[one.kind](parsed(document.document))
            for notify in found.notify:
                if (notify.channel, notify.target) == (one.channel, one.target):
                    return notify if isinstance(notify, Notify) else None
    return None
