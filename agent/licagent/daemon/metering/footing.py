# SPDX-License-Identifier: Apache-2.0
"""Storage footprints of the settings and of the policy's storage resources, as one source."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from licagent.domain.footprint import FootprintSpec
from licagent.domain.policy_model import Resource, ResourceKind
from licagent.metering.footprint import (
    FootprintRow,
    Footprints,
    FootprintSample,
    FootprintState,
    Instant,
)

_NAME_MAX: Final = 64


def specs_of(
    settings: Sequence[FootprintSpec], resources: Iterable[Resource]
) -> tuple[FootprintSpec, ...]:
    """What is measured: the settings' footprints, and each path of a storage resource.

    A path that the settings measure for the same resource is theirs: they say how.
    """
    taken = {(spec.path, spec.resource) for spec in settings}
    found = list(settings)
    for resource in resources:
        if resource.kind is not ResourceKind.STORAGE:
            continue
        for path in resource.paths:
            if (path, resource.name) not in taken:
                taken.add((path, resource.name))
                name = _name(f"{resource.name}:{path}")
                found.append(FootprintSpec(name, path, resource=resource.name))
    return tuple(found)


def _name(text: str) -> str:
    """The text, or as much of it as fits and a digest, so that no two become one."""
    if len(text) <= _NAME_MAX and text.isprintable():
        return text
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
    shown = "".join(each if each.isprintable() else "?" for each in text)
    return f"{shown[: _NAME_MAX - 17]}#{digest}"


class Footing:
    """`metering.sampler.FootprintSource`, over footprints that follow the policy."""

    def __init__(self, clock: Callable[[], Instant], baseline: Callable[[], bytes]) -> None:
        """`baseline`: that of the last committed sample, asked for at each change."""
        self._clock = clock
        self._baseline = baseline
        self._specs: tuple[FootprintSpec, ...] = ()
        self._footprints: Footprints | None = None
        self._sample: FootprintSample | None = None

    def follow(self, specs: tuple[FootprintSpec, ...]) -> None:
        """Measure these from now on. Those that were measured before go on where they were."""
        if specs == self._specs:
            return
        self.close()
        self._specs = specs
        if specs:
            self._footprints = Footprints(specs, clock=self._clock, baseline=self._baseline())

    def take(self) -> tuple[Sequence[FootprintRow], bytes]:
        """See `FootprintSource`."""
        if self._footprints is None:
            return (), self._baseline()
        self._sample = self._footprints.sample()
        return self._sample.rows, self._sample.baseline

    def committed(self) -> None:
        """See `FootprintSource`."""
        if self._footprints is not None and self._sample is not None:
            self._footprints.committed(self._sample)

    def states(self) -> tuple[FootprintState, ...]:
        """The last measurements."""
        return () if self._footprints is None else self._footprints.states()

    def close(self) -> None:
        """End a walk that is under way."""
        if self._footprints is not None:
            self._footprints.close()
        self._footprints = self._sample = None
