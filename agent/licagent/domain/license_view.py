# SPDX-License-Identifier: Apache-2.0
"""What a license entitles to, of the resources of one policy; and what none entitles to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from licagent.domain.entitlements import refusals
from licagent.domain.policy_model import Resource, ResourceKind
from licagent.domain.problem import PolicyProblem, shown
from licagent.domain.selector import Selector
from lictoken.claims import License

_ACTIONS: Final = {ResourceKind.NETWORK: "connect", ResourceKind.SERVICE: "bind"}
"""What an entitlement must allow for a resource of the kind; "use" for all others."""


@dataclass(slots=True)
class LicenseView:
    """What the compiler needs of a license, worked out once for all its bindings."""

    license: License
    selectors: tuple[Selector, ...]
    grants: dict[str, bool]  # resources of the policy it entitles -> is honoured
    wrong_action: frozenset[str]  # resources it names, but for another action


def license_view(
    license_: License,
    selectors: tuple[Selector, ...],
    resources: Mapping[str, tuple[int, Resource]],
    withheld: AbstractSet[tuple[str, str]],
) -> LicenseView:
    """Of a license with these selectors, over `resources` with their numbers, by name.

    What is in `withheld`, (license id, resource), is entitled and not honoured.
    """
    grants = {}
    wrong_action = set()
    for entitlement in license_.entitlements:
        if entitlement.resource not in resources:
            continue  # licenses are for a fleet, policies for a host
        kind = resources[entitlement.resource][1].kind
        if _ACTIONS.get(kind, "use") in entitlement.actions:
            is_withheld = (license_.jti, entitlement.resource) in withheld
            grants[entitlement.resource] = not is_withheld and not refusals(entitlement)
        else:
            wrong_action.add(entitlement.resource)
    return LicenseView(license_, selectors, grants, frozenset(wrong_action))


def not_granted(
    view: LicenseView, name: str, resources: Mapping[str, tuple[int, Resource]]
) -> tuple[str, str]:
    """Why a license does not grant a resource, and what to do."""
    if name not in resources:
        return f"there is no resource {shown(name)}", "describe it in a [[resource]]"
    if name in view.wrong_action:
        action = _ACTIONS.get(resources[name][1].kind, "use")
        return (
            f"license {shown(view.license.jti)} entitles {shown(name)}, but not to {action}",
            f"have it issued with the action {action}",
        )
    entitled = ", ".join(entry.resource for entry in view.license.entitlements[:8])
    return (
        f"license {shown(view.license.jti)} does not entitle {shown(name)}",
        f"it entitles {entitled}",
    )


def unreached(
    resources: Iterable[tuple[int, Resource]],
    reached: AbstractSet[str],
    licenses: Mapping[str, License],
) -> Iterator[PolicyProblem]:
    """A problem for each enforced resource that no license entitles through any binding.

    One that is only observed may have none yet: finding out who uses it comes first.
    """
    entitling: dict[str, str] = {}
    for name, license_ in licenses.items():
        for entitlement in license_.entitlements:
            entitling.setdefault(entitlement.resource, name)
    for _, resource in resources:
        if resource.name in reached or not resource.enforce:
            continue
        name = resource.name
        hint = f"have a license issued that entitles {name}, and bind it"
        if name in entitling:
            action = _ACTIONS.get(resource.kind, "use")
            hint = f'bind license = "{entitling[name]}", if it allows to {action}'
        message = f"nobody can reach {shown(name)}: no binding's license entitles it"
        yield PolicyProblem(resource.file, resource.line, "resource", message, hint, True)
