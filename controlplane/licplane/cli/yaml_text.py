# SPDX-License-Identifier: Apache-2.0
"""YAML as far as documents need it.

yaml.safe_load's types, less what surprises: duplicate keys are refused instead of the last one
winning, aliases are refused (a short text could stand for gigabytes), and only what JSON would
read as such is a number or a truth value. So `no`, `22:30` and `2026-12-31` stay texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

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


def _taken_not(what: str, mark: yaml.Mark) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, what, mark)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the rules above."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise _taken_not("aliases (*name) are not taken", mark)
        self.depth += 1
        if self.depth > DEPTH_MAX:
            raise _taken_not("it is nested too deeply", mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _taken_not("a key is no text", key.start_mark)
            if key.value in seen:
                raise _taken_not(f"the key {key.value!r} stands there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """No merge keys: `<<` is a key like others, and so an unknown one."""


for _tag, _pattern, _first in _PLAIN:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern.pattern})$"), list(_first))


def yaml_documents(name: str, text: str) -> Iterator[object]:
    """The documents of a YAML text, as plain values.

    Raises PlaneError REFUSED, with `name`, line and column, for what is not YAML or not taken.
    """
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:
        raise _refused(name, error) from error
    try:
        while loader.check_data():  # type: ignore[no-untyped-call]
            yield loader.get_data()
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise _refused(name, error) from error
    finally:
        loader.dispose()


def _refused(name: str, error: Exception) -> PlaneError:
    mark = getattr(error, "problem_mark", None)
    where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark is not None else name
    what = getattr(error, "problem", None) or str(error).partition("\n")[0]
    return PlaneError(
        ExitCode.REFUSED,
        f"{where}: {what}",
        "Mend the line; docs/reference/documents.md shows the form",
    )
