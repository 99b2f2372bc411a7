# SPDX-License-Identifier: Apache-2.0
"""Which license compute and storage use belongs to. Pure.

Nobody is refused the CPU by this: a `compute` resource is measured, and its bindings say under
which license. The order is that of the kernel's rule tables: among the bindings that match, the
most specific one wins (`Shape`), of several scopes the deepest. Where several resources are as
near, use is charged once: to the first with a valid license, in the policy's order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final

from licagent.domain.compiler import Grant, PolicyCompiler
from licagent.domain.decision import Subject
from licagent.domain.policy_model import Policy, ResourceKind
from licagent.domain.rules import Folder
from licagent.domain.tables import ANY_ID, ANY_OWNER, RuleKey, Shape
from lictoken.claims import License

MEASURED_KINDS: Final = (ResourceKind.COMPUTE, ResourceKind.STORAGE)
"""Kinds that are measured and never decided on."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """What use is charged to; all empty where no resource is used."""

    license: str = ""
    """"" also where a resource is used and no valid license covers it: shadow usage."""
    resource: str = ""
    binding: str = ""


NOTHING: Final = Attribution()


@dataclass(frozen=True, slots=True)
class Claim:
    """What one place of the table says: a resource, and the licenses that may cover its use."""

    resource: str
    alternatives: tuple[tuple[str, str], ...]
    """(license id, binding), the one to be tried first at the front."""

    def charge(self, valid: AbstractSet[str]) -> Attribution:
        """The first valid license; none of them valid: the resource alone."""
        for license_, binding in self.alternatives:
            if license_ in valid:
                return Attribution(license_, self.resource, binding)
        return Attribution("", self.resource, "")


Key = tuple[int, int, int, int, int]
"""path, digest, scope, uid and gid of a rule's key."""


@dataclass(frozen=True, slots=True)
class AttributionTable:
    """Compute and storage resources of a policy, by who uses them. Made by `attribute`."""

    compute: Mapping[Key, Sequence[Claim]] = field(default_factory=dict)
    shapes: Sequence[Shape] = ()
    """In use by `compute`, the most specific first."""
    lone_compute: str = ""
    """The compute resource, where there is exactly one: also what nobody is bound to."""
    storage: Mapping[str, Sequence[tuple[Key, Claim]]] = field(default_factory=dict)
    """By resource, the most specific claim first."""

    @property
    def licenses(self) -> frozenset[str]:
        """Ids of all licenses that use may be charged to."""
        claims = [claim for each in self.compute.values() for claim in each]
        claims += [claim for each in self.storage.values() for _key, claim in each]
        return frozenset(name for claim in claims for name, _binding in claim.alternatives)

    def of(self, subject: Subject, valid: AbstractSet[str]) -> Attribution:
        """What compute use of `subject` is charged to. `valid`: ids of licenses valid now."""
        for shape in self.shapes:
            if shape & Shape.PATH and not subject.path:
                continue
            if shape & Shape.DIGEST and not subject.digest:
                continue
            claims = self._claims(shape, subject)
            if claims is not None:
                found = [claim.charge(valid) for claim in claims]
                return next((each for each in found if each.license), found[0])
        return Attribution("", self.lone_compute) if self.lone_compute else NOTHING

    def _claims(self, shape: Shape, subject: Subject) -> Sequence[Claim] | None:
        for scope in subject.scopes if shape & Shape.SCOPE else (ANY_ID,):
            claims = self.compute.get(
                (
                    subject.path if shape & Shape.PATH else ANY_ID,
                    subject.digest if shape & Shape.DIGEST else ANY_ID,
                    scope,
                    subject.uid if shape & Shape.UID else ANY_OWNER,
                    subject.gid if shape & Shape.GID else ANY_OWNER,
                )
            )
            if claims is not None:
                return claims
        return None

    def of_footprint(self, resource: str, uid: int | None, valid: AbstractSet[str]) -> Attribution:
        """What stored bytes of a storage resource are charged to. `uid`: of a user's footprint.

        Files do not say which process wrote them. So a path's footprint belongs to the license
        that the resource is bound to; with several, to the one bound to the whole host; with
        several and none of those, to none.
        """
        claims = self.storage.get(resource)
        if not claims:
            return Attribution("", resource)
        if uid is not None:
            for key, claim in claims:
                if key[3] == uid:
                    return claim.charge(valid)
        charged = {claim.charge(valid) for _key, claim in claims}
        licensed = {each for each in charged if each.license}
        if len({each.license for each in licensed}) == 1:
            return min(licensed, key=lambda each: each.binding)
        for key, claim in claims:
            if key == _EVERYBODY:
                return claim.charge(valid)
        return Attribution("", resource)


_EVERYBODY: Final[Key] = (ANY_ID, ANY_ID, ANY_ID, ANY_OWNER, ANY_OWNER)

EMPTY: Final = AttributionTable()


def attribute(
    policy: Policy,
    licenses: Mapping[str, License],
    folder: Folder,
    withheld: AbstractSet[tuple[str, str]] = frozenset(),
) -> AttributionTable:
    """The table of a policy that compiles; mistakes in it grant nothing here.

    `folder` must have the numbering of the tables in force, so that a row of the kernel means
    the same paths, digests and scopes.
    """
    measured = tuple(each for each in policy.resources if each.kind in MEASURED_KINDS)
    if not measured:
        return EMPTY
    compiler = PolicyCompiler(policy, licenses, folder, withheld, kinds=MEASURED_KINDS)
    compiler.number_resources()
    numbers = {
        folder.numbering.number("resource", each.name): (position, each)
        for position, each in enumerate(measured)
    }
    for binding in policy.bindings:
        compiler.bind(binding)
    compute: dict[Key, list[tuple[int, Claim]]] = {}
    storage: dict[str, list[tuple[Key, Claim]]] = {}
    for (number, *who), grants in compiler.grants.items():
        position, resource = numbers[number]
        key: Key = (who[0], who[1], who[2], who[3], who[4])
        claim = Claim(resource.name, _alternatives(grants))
        if resource.kind is ResourceKind.COMPUTE:
            compute.setdefault(key, []).append((position, claim))
        else:
            storage.setdefault(resource.name, []).append((key, claim))
    computes = [each.name for each in measured if each.kind is ResourceKind.COMPUTE]
    return AttributionTable(
        compute={
            key: tuple(claim for _position, claim in sorted(claims, key=lambda each: each[0]))
            for key, claims in compute.items()
        },
        shapes=tuple(sorted({_shape(key) for key in compute}, reverse=True)),
        lone_compute=computes[0] if len(computes) == 1 else "",
        storage={
            name: tuple(sorted(claims, key=lambda each: -_shape(each[0])))
            for name, claims in storage.items()
        },
    )


def _shape(key: Key) -> Shape:
    return RuleKey(0, *key).shape


def _alternatives(grants: Sequence[Grant]) -> tuple[tuple[str, str], ...]:
    """The license that lasts longest first, as in the kernel's rules."""
    honoured = {grant.license.jti: grant for grant in grants if grant.honoured}
    ordered = sorted(
        honoured.values(), key=lambda grant: (-grant.license.expires_at_s, grant.license.number)
    )
    return tuple((grant.license.jti, grant.binding.name) for grant in ordered)
