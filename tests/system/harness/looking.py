# SPDX-License-Identifier: Apache-2.0
"""Asking a control plane's database without its keys, its server or a command: quick, and often."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from tests.system.harness.controlplane import ControlPlane

if TYPE_CHECKING:
    from licplane.service.answers import HostView
    from licplane.service.authorities import RootView
    from licplane.service.plane import Plane

Value = TypeVar("Value")


def look(plane: ControlPlane, question: Callable[[Plane], Value]) -> Value:
    """The answer of a Plane that can only read."""
    from licplane.service.plane import Plane
    from licplane.store.database import Store

    with Store.open(plane.database or str(plane.state)) as store:
        return question(Plane(store, None))


def seen(plane: ControlPlane, host: str) -> HostView:
    """A host, as the control plane has it now."""
    from licplane.cli.local import local_actor

    return look(plane, lambda found: found.get_host(local_actor(), host))


def roots(plane: ControlPlane) -> dict[str, RootView]:
    """The certification authorities by their status."""
    from licplane.cli.local import local_actor

    views = look(plane, lambda found: found.authorities.views(local_actor()))
    return {one.status.value: one for one in views}


def lag(plane: ControlPlane, host: str) -> int:
    """Revisions that the host has not confirmed."""
    found = seen(plane, host)
    return max(0, found.revision - found.acked_revision)
