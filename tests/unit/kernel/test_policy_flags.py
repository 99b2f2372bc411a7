# SPDX-License-Identifier: Apache-2.0
"""Which flags a policy gets: what programs ask before they look into any table."""

from __future__ import annotations

from typing import Final

import pytest

from licagent.domain.tables import SERVICE_CLASS, PortFlag, PortPrefix, Protocol, Tables
from licagent.kernel.numbers import PolicyFlag
from licagent.kernel.tables import _flags

_BOTH: Final = PolicyFlag.ENFORCE | PolicyFlag.ENFORCES_NETWORKS


def _port(class_number: int, flags: PortFlag) -> PortPrefix:
    return PortPrefix(class_number, Protocol.TCP, 8080, 16, 1, flags)


@pytest.mark.parametrize("enforces", [True, False])
@pytest.mark.parametrize(
    ("network", "service", "wanted"),
    [
        (PortFlag.ENFORCE, PortFlag.ENFORCE, _BOTH),
        (PortFlag.ENFORCE, PortFlag(0), _BOTH),
        (PortFlag(0), PortFlag.ENFORCE, PolicyFlag.ENFORCE),
        (PortFlag(0), PortFlag(0), 0),
    ],
)
def test_a_service_that_is_enforced_enforces_no_network(
    enforces: bool, network: PortFlag, service: PortFlag, wanted: int
) -> None:
    tables = Tables(ports=(_port(SERVICE_CLASS + 1, network), _port(SERVICE_CLASS, service)))
    found = _flags(tables, enforce=enforces, keep_existing=False)
    assert found & _BOTH == (wanted if enforces else 0)
