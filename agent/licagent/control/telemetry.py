# SPDX-License-Identifier: Apache-2.0
"""Reports of the host's state, on a connection of their own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, cast

import grpc

from licagent.control.backoff import Backoff, around
from licagent.control.interface import ControlCallbacks, ControlSettings
from licagent.control.transport import control_channel, described, retry_after_ms
from licagent.control.wire import report_message
from licagent.domain.hostidentity import Identity
from licapi.control.v1 import telemetry_pb2, telemetry_pb2_grpc

_log: Final = logging.getLogger(__name__)

_RECEIPT_S: Final = 60.0
_INTERVAL_DEFAULT_MS: Final = 30_000
_INTERVAL_MIN_MS: Final = 1_000
_PAUSE_MAX_MS: Final = 3_600_000


async def report_for_ever(
    identity: Identity,
    address: str,
    callbacks: ControlCallbacks,
    settings: ControlSettings,
    interval_ms: int,
    *,
    sent: Callable[[], None],
) -> None:
    """Report, wait, report. A failure costs one report and a pause. Until cancelled."""
    interval_ms = settings.report_interval_ms or max(
        interval_ms or _INTERVAL_DEFAULT_MS, _INTERVAL_MIN_MS
    )
    backoff = Backoff(max(interval_ms // 4, 1_000), settings.backoff_cap_ms)

    def arrived() -> None:
        backoff.succeeded()
        sent()

    while True:
        asked_ms = 0
        channel = control_channel(identity, address, settings)
        try:
            await _report(channel, callbacks, interval_ms, arrived)
        except grpc.aio.AioRpcError as error:
            _log.info("reports: %s", described(error, address))
            asked_ms = retry_after_ms(error)
        except (TimeoutError, asyncio.InvalidStateError):
            _log.info("reports: %s does not answer", address)
        except Exception:  # noqa: BLE001 -- of the daemon's own making
            _log.warning("the host's state could not be reported", exc_info=True)
        finally:
            await channel.close()
        await asyncio.sleep(backoff.next_ms(asked_ms) / 1000)


async def _report(
    channel: grpc.aio.Channel,
    callbacks: ControlCallbacks,
    interval_ms: int,
    sent: Callable[[], None],
) -> None:
    stub = telemetry_pb2_grpc.TelemetryStub(channel)
    call = stub.Report()
    sequence = 0
    try:
        while True:
            sequence += 1
            report = await callbacks.report()
            async with asyncio.timeout(_RECEIPT_S):
                await call.write(report_message(report, sequence))
                receipt = await call.read()
            if receipt is grpc.aio.EOF:
                return
            sent()
            pause_ms = min(cast("telemetry_pb2.ReportReceipt", receipt).pause_ms, _PAUSE_MAX_MS)
            await asyncio.sleep(around(pause_ms or interval_ms) / 1000)
    finally:
        call.cancel()
