# SPDX-License-Identifier: Apache-2.0
"""YAML as far as documents need it.

yaml.safe_load's types, less what surprises: duplicate keys are refused instead of the last one
winning, aliases are refused (a short text could stand for gigabytes), and only what JSON would
read as such is a number or a truth value. So `no`, `22:30` and `2026-12-31` stay texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import yaml

from licplane.errors import ExitCode, PlaneError

DEPTH_MAX: Final = 32

_PLAIN: Final = (
    ("tag:yaml.org,2002:null", re.compile(r"null|~|", re.ASCII), ("n", "~", "")),
    ("tag:yaml.org,2002:bool", re.compile(r"true|false", re.ASCII), ("t", "f")),
    ("tag:yaml.org,2002:int", re.compile(r"-?(?:0|[1-9]\d{0,18})", re.ASCII), tuple("-0123456789")),
    (
        "tag:yaml.org,2002:float",
        re.compile(r"-?\d{1,19}\.\d{1,19}", re.ASCII),
        tuple("-0123456789"),
    ),
)


def _taken_not(what: str, mark: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, what, mark)


# libyaml's parser where PyYAML was built with it: ten times as fast on a large policy.
_Base: Final = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


class _Loader(_Base):  # type: ignore[misc, valid-type]
    """SafeLoader with the rules above."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _taken_not("a key is no text", key.start_mark)
            if key.value in seen:
                raise _taken_not(f"the key {key.value!r} stands there twice", key.start_mark)
            seen.add(key.value)
        found: dict[object, object] = super().construct_mapping(node, deep=deep)
        return found

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """No merge keys: `<<` is a key like others, and so an unknown one."""


for _tag, _pattern, _first in _PLAIN:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern.pattern})$"), list(_first))


def yaml_documents(name: str, text: str) -> Iterator[object]:
    """The documents of a YAML text, as plain values.

    Raises PlaneError REFUSED, with `name`, line and column, for what is not YAML or not taken.
    """
    try:
        _check_events(text)
        loader = _Loader(text)
    except yaml.YAMLError as error:
        raise _refused(name, error) from error
    try:
        while loader.check_data():
            yield loader.get_data()
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise _refused(name, error) from error
    finally:
        loader.dispose()


def _check_events(text: str) -> None:
    """Refuse aliases and deep nesting before anything is built of the text."""
    depth = 0
    for event in yaml.parse(text, Loader=_Base):
        if isinstance(event, yaml.AliasEvent):
            raise _taken_not("aliases (*name) are not taken", event.start_mark)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH_MAX:
                raise _taken_not("it is nested too deeply", event.start_mark)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _refused(name: str, error: Exception) -> PlaneError:
    mark = getattr(error, "problem_mark", None)
    where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark is not None else name
    what = getattr(error, "problem", None) or str(error).partition("\n")[0]
    return PlaneError(
        ExitCode.REFUSED,
        f"{where}: {what}",
        "Mend the line; docs/reference/documents.md shows the form",
    )
