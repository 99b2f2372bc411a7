# SPDX-License-Identifier: Apache-2.0
"""Metering in the daemon's life: the meter, the ledger, delivery, and what is told of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent


class MeteringKeeper:
    """Owns the metering of one host; everything it does runs on its own thread."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
