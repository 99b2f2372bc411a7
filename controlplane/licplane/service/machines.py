# SPDX-License-Identifier: Apache-2.0
"""Machines that want to be hosts: what they say of themselves is checked, and becomes a row."""

from __future__ import annotations

import re
import uuid
from typing import Final

from licapi.version import installed, why_not_served
from licplane.errors import ExitCode, PlaneError
from licplane.service.requests import Machine
from licplane.service.texts import MACHINE_ID, check_pattern, tidy
from licplane.service.values import HostStatus
from licplane.store.host_model import Host

_HOSTNAME_MAX: Final = 253
_HOSTNAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}", re.ASCII)
"""RFC 1123 with the underscores that hosts do have. Names become arguments of other programs (ssh,
Ansible), so none starts with a dash."""
_UNNAMED: Final = "(none)"
"""What Linux calls a host that was given no name."""
_WORD_MAX: Final = 128


def new_host(
    machine: Machine, fingerprint: bytes, labels: dict[str, str], now_ms: int, token_id: str
) -> Host:
    """A host that was never here."""
    return Host(
        host_id=str(uuid.uuid4()),
        hostname=machine.hostname,
        status=HostStatus.ACTIVE,
        labels=labels,
        machine_id=machine.machine_id,
        key_fingerprint=fingerprint,
        assignment_sequence=1,
        enrolled_at_unix_ms=now_ms,
        join_token=token_id,
        agent_version=machine.agent_version,
        kernel_release=machine.kernel_release,
    )


def checked(machine: Machine) -> Machine:
    """What a machine says of itself, cut to what is kept.

    Raises PlaneError for a version that is not served, a machine id or a host name that is none; a
    host without a name is let in.
    """
    if not_served := why_not_served(tidy(machine.agent_version, _WORD_MAX), installed()):
        raise PlaneError(ExitCode.REFUSED, not_served, "The host was not enrolled")
    if machine.machine_id:
        check_pattern(machine.machine_id, "The machine id", MACHINE_ID, "32 hexadecimal digits")
    hostname = "" if machine.hostname == _UNNAMED else machine.hostname
    if hostname:
        check_pattern(
            hostname, "The host name", _HOSTNAME,
            f"letters, digits and _, after the first also . and -, at most {_HOSTNAME_MAX};"
            " `hostnamectl hostname NAME` names a host",
        )  # fmt: skip
    return Machine(
        hostname,
        machine.machine_id,
        tidy(machine.boot_id, _WORD_MAX),
        tidy(machine.agent_version, _WORD_MAX),
        tidy(machine.kernel_release, _WORD_MAX),
    )
