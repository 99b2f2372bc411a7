# SPDX-License-Identifier: Apache-2.0
"""Declared objects: resources, bindings and licenses as they stand in YAML and TOML files.

What a file may contain is checked here: size, form, known top-level keys, each thing named once.
What a document may contain is the service's business (docs/reference/documents.md).
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, cast

from licplane.cli.yaml_text import yaml_documents
from licplane.errors import ExitCode, PlaneError
from lictoken.fields import suggestion
from lictoken.validity import rfc3339

FILE_MAX_BYTES: Final = 64 * 2**20
FILES_MAX: Final = 10_000
NAME_KEYS: Final = {"resource": "name", "binding": "name", "license": "id"}
"""Kinds of documents, in the order they are applied in, and the key that names one."""

_YAML: Final = frozenset({".yaml", ".yml", ".json"})  # JSON is YAML
_TOML: Final = frozenset({".toml"})


@dataclass(frozen=True, slots=True)
class Declared:
    """One document of a file."""

    kind: str  # one of NAME_KEYS
    name: str
    document: dict[str, object]
    source: str  # file, and the place in it


def read_declared(paths: Sequence[Path]) -> list[Declared]:
    """Every document of these files and folders, in the order of kinds, then as written.

    A folder stands for every .yaml, .yml, .json and .toml below it that is not hidden; `-` is
    YAML from standard input.

    Raises:
        PlaneError: a file that cannot be read or understood, a thing declared twice.
    """
    found: dict[tuple[str, str], Declared] = {}
    for file in _files(paths):
        for one in _documents(file):
            key = (one.kind, one.name)
            if key in found:
                raise _refused(
                    f"{one.source}: {one.kind} {one.name} is declared already in"
                    f" {found[key].source}",
                    "Keep one of the two",
                )
            found[key] = one
    order = list(NAME_KEYS)
    return sorted(found.values(), key=lambda one: order.index(one.kind))


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    count = 0
    for path in paths:
        if str(path) != "-" and not path.exists():
            raise PlaneError(
                ExitCode.NOT_FOUND, f"There is no file or folder {path}", "Check the path after -f"
            )
        inside = _below(path) if path.is_dir() else [path]
        if not inside:
            raise PlaneError(
                ExitCode.NOT_FOUND,
                f"{path} has no .yaml, .yml, .json or .toml file",
                "Name the folder with the documents; with --prune an empty one would delete"
                " everything, so it is refused",
            )
        for file in inside:
            count += 1
            if count > FILES_MAX:
                raise _refused(f"{path} has more than {FILES_MAX} files", "Apply it in parts")
            yield file


def _below(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in _YAML | _TOML
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _documents(file: Path) -> Iterator[Declared]:
    data = _read(file)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise _refused(
            f"{file} is not UTF-8 (byte {error.start})", "Save it as UTF-8 and try again"
        ) from error
    if file.suffix in _TOML:
        roots: list[object] = [_toml(file, text)]
    else:
        roots = list(yaml_documents(str(file), text))
    for at, root in enumerate(roots):
        part = f" (document {at + 1})" if len(roots) > 1 else ""
        yield from _of_root(f"{file}{part}", root)


def _read(file: Path) -> bytes:
    if str(file) == "-":
        data = sys.stdin.buffer.read(FILE_MAX_BYTES + 1)
    else:
        with file.open("rb") as source:
            data = source.read(FILE_MAX_BYTES + 1)
    if len(data) > FILE_MAX_BYTES:
        raise _refused(f"{file} has more than {FILE_MAX_BYTES // 2**20} MiB", "Split it")
    return data


def _toml(file: Path, text: str) -> object:
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise _refused(f"{file} is nested too deeply", "Four levels are enough") from error
    except ValueError as error:
        raise _refused(f"{file} is not TOML: {error}", "See https://toml.io") from error


def _of_root(place: str, root: object) -> Iterator[Declared]:
    if root is None:
        return
    if not isinstance(root, dict):
        raise _refused(
            f"{place}: the top is no table", "Write `resource:`, `binding:` or `license:` there"
        )
    for key, items in root.items():
        if key not in NAME_KEYS:
            raise _refused(
                f"{place}: {key!r} is unknown{suggestion(str(key), list(NAME_KEYS))}",
                "At the top stand resource, binding and license, each a list",
            )
        if not isinstance(items, list):
            raise _refused(
                f"{place}: {key} is no list", f"Write [[{key}]] in TOML, or a list in YAML"
            )
        for at, item in enumerate(items):
            yield _declared(f"{place}: {key}[{at}]", key, item)


def _declared(place: str, kind: str, item: object) -> Declared:
    if not isinstance(item, dict):
        raise _refused(f"{place} is no table", "Give it keys and values")
    name_key = NAME_KEYS[kind]
    name = item.get(name_key)
    if not isinstance(name, str) or not name:
        raise _refused(
            f"{place} has no {name_key}",
            f'Add {name_key}: "...", by which it is known from now on',
        )
    return Declared(kind, name, cast("dict[str, object]", _plain(place, item)), place)


def _plain(place: str, value: object) -> object:
    """The value as JSON has it: TOML's times as RFC 3339, other types refused."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise _refused(f"{place}: the key {key!r} is no text", "Put it in quotes")
        return {key: _plain(f"{place}.{key}", inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(f"{place}[{at}]", inner) for at, inner in enumerate(value)]
    if isinstance(value, datetime) and value.tzinfo is not None and not value.microsecond:
        return rfc3339(int(value.timestamp()))
    if value is None or isinstance(value, str | int):
        return value
    raise _refused(
        f"{place} is {value!r}, which no document has",
        "Write texts in quotes, whole numbers, and times with their zone",
    )


def _refused(message: str, hint: str) -> PlaneError:
    return PlaneError(ExitCode.REFUSED, message, hint)
