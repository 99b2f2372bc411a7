# SPDX-License-Identifier: Apache-2.0
"""Answers of changes as JSON objects, so that the same request can be answered again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from licplane.service.answers import ChangeResult, Difference, Impact


def change_to(result: ChangeResult) -> dict[str, object]:
    """A ChangeResult as a JSON object."""
    return asdict(result)


def change_from(value: Mapping[str, Any]) -> ChangeResult:
    """What `change_to` wrote."""
    return ChangeResult(
        changed=value["changed"],
        dry_run=value["dry_run"],
        revision=value["revision"],
        differences=tuple(
            Difference(one["action"], one["kind"], one["name"], tuple(one["lines"]))
            for one in value["differences"]
        ),
        impact=tuple(Impact(**one) for one in value["impact"]),
        etag=value["etag"],
        tokens=tuple(value["tokens"]),
    )
