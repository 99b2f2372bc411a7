# SPDX-License-Identifier: Apache-2.0
"""Who may do what (docs/reference/roles.md says the same in words)."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from licplane.errors import ExitCode, PlaneError
from licplane.service.values import Actor, Role


class Permission(StrEnum):
    """What a role may do; the words appear in refusals."""

    READ_HOSTS = "read hosts"
    CHANGE_HOSTS = "change hosts"
    READ_TOKENS = "read join tokens"
    CHANGE_TOKENS = "create and delete join tokens"
    READ_CATALOG = "read resources, bindings and licenses"
    CHANGE_CATALOG = "change resources, bindings and licenses"
    READ_AUDIT = "read the audit log"
    READ_ADMINS = "read administrators"
    CHANGE_ADMINS = "create and revoke administrators"
    CHANGE_KEYS = "create and retire keys"
    READ_USAGE = "read usage and bills"
    CHANGE_BILLING = "change price plans, triggers and budgets, and close periods"


_READING: Final = frozenset(
    {Permission.READ_HOSTS, Permission.READ_CATALOG}
)  # of everybody who administers anything
PERMISSIONS: Final[dict[Role, frozenset[Permission]]] = {
    Role.ADMIN: frozenset(Permission),
    Role.ISSUER: _READING | {Permission.CHANGE_CATALOG},
    Role.AUDITOR: _READING
    | {
        Permission.READ_TOKENS,
        Permission.READ_AUDIT,
        Permission.READ_ADMINS,
        Permission.READ_USAGE,
    },
    Role.HOST: frozenset(),
}


def require(actor: Actor, permission: Permission) -> None:
    """Raise PlaneError PERMISSION unless the actor's role has the permission."""
    if permission in PERMISSIONS[actor.role]:
        return
    able = [role.value for role, has in PERMISSIONS.items() if permission in has]
    raise PlaneError(
        ExitCode.PERMISSION,
        f"The role {actor.role.value} may not {permission.value}",
        f"Ask somebody with the role {' or '.join(able)}",
    )
