# SPDX-License-Identifier: Apache-2.0
"""Licenses that `licagent run` was asked for: each has a binding to a cgroup of its own."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Final

from licagent.daemon.policy.run_scopes import run_cgroup
from licagent.domain.policy import Policy
from licagent.domain.policy_model import Binding
from licagent.domain.selector import parse as parse_selector
from licagent.store.errors import DocumentDamaged
from licagent.store.statedir import StateDir
from lictoken.claims import License

_log: Final = logging.getLogger(__name__)

_DOCUMENT: Final = "run-licenses"
_SCHEMA: Final = "licagent.run/1"


class RunLicenses:
    """Their ids, which survive a restart."""

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self._ids: set[str] = set()
        try:
            body = state.read_document(_DOCUMENT, _SCHEMA)
        except DocumentDamaged as error:
            _log.error("%s", error)
            body = None
        if body is not None:
            self._ids.update(str(jti) for jti in body["ids"])

    @property
    def ids(self) -> frozenset[str]:
        """Those that a policy compiled now has bindings for."""
        return frozenset(self._ids)

    def allow(self, jti: str) -> None:
        """From the next compilation on, `licagent run` has a scope for this license.

        Made when first asked for: most licenses never need one.
        """
        if jti not in self._ids:
            self._keep(self._ids | {jti})

    def forget(self, ids: Collection[str]) -> None:
        """From the next compilation on there is nothing for these, until they are asked for."""
        left = self._ids.difference(ids)
        if left != self._ids:
            self._keep(left)

    def _keep(self, ids: set[str]) -> None:
        self._state.write_document(_DOCUMENT, _SCHEMA, {"ids": sorted(ids)})
        self._ids = ids

    def bindings(self, policy: Policy, licenses: Mapping[str, License]) -> tuple[Binding, ...]:
        """Whoever root put into a license's own cgroup runs under it."""
        named = {resource.name for resource in policy.resources}
        return tuple(
            Binding(
                name=f"licagent run --license {jti}",
                license=jti,
                selectors=(parse_selector(f"cgroup:path:{run_cgroup(jti)}"),),
                file="licagent run",
            )
            for jti in sorted(self._ids & licenses.keys())
            if any(entitlement.resource in named for entitlement in licenses[jti].entitlements)
        )
