# SPDX-License-Identifier: Apache-2.0
"""Checks of the small texts that callers send: each refused in words, never passed on."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from typing import Final

from licplane.errors import ExitCode, PlaneError

LABEL_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}", re.ASCII)
LABEL_VALUE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", re.ASCII)
LABELS_MAX: Final = 64
ADMIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)
TOKEN_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
MACHINE_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_SHOWN: Final = 80


def shown(value: object) -> str:
    """`value` for an error: one short line of printable ASCII."""
    text = ascii(value[: _SHOWN * 2] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def refuse(message: str, hint: str) -> PlaneError:
    """A refusal of something that was written wrongly."""
    return PlaneError(ExitCode.USAGE, message, hint)


def check_words(text: str, what: str, longest: int) -> str:
    """A printable text of 1..longest characters."""
    if not 1 <= len(text) <= longest or not text.isprintable() or text != text.strip():
        raise refuse(
            f"{what} is {shown(text)}, not a printable text",
            f"Write 1 to {longest} printable characters, without spaces around them",
        )
    return text


def tidy(text: str, longest: int) -> str:
    """A text that a host says of itself: cut, and without what is not printable."""
    return "".join(one if one.isprintable() else "?" for one in text[:longest])


def check_pattern(text: str, what: str, pattern: re.Pattern[str], form: str) -> str:
    """A text that matches as a whole; `form` describes it."""
    if not pattern.fullmatch(text):
        raise refuse(f"{what} is {shown(text)}", f"Write {form}")
    return text


def check_labels(labels: Mapping[str, str], *, allow_empty: bool = False) -> dict[str, str]:
    """Labels of a host; values may be empty where that means removal."""
    if len(labels) > LABELS_MAX:
        raise refuse(f"There are {len(labels)} labels", f"A host has at most {LABELS_MAX}")
    for name, value in labels.items():
        check_pattern(
            name, "The name of a label", LABEL_NAME,
            "a lower-case letter, then lower-case letters, digits, _ and -, at most 63",
        )  # fmt: skip
        if value or not allow_empty:
            check_pattern(
                value, f"The label {name}", LABEL_VALUE,
                "letters, digits and . _ : / -, at most 128",
            )  # fmt: skip
    return dict(sorted(labels.items()))


def host_id_of(text: str) -> str | None:
    """`text` as a host id, or None when it is none."""
    try:
        found = str(uuid.UUID(text))
    except (ValueError, AttributeError):
        return None
    return found if found == text.lower() else None


def one_of(value: str, what: str, choices: Iterable[str]) -> str:
    """One of `choices`."""
    known = list(choices)
    if value not in known:
        raise refuse(f"{what} is {shown(value)}", f"Choose one of {', '.join(known)}")
    return value
