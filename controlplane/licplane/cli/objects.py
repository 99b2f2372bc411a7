# SPDX-License-Identifier: Apache-2.0
"""`licplane resource` and `licplane binding`: one document at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from licplane.cli.backend import Backend, every
from licplane.cli.changes import change_options, changing, reading, show_change
from licplane.cli.completion import complete_binding, complete_resource
from licplane.cli.declared import Declared, read_declared
from licplane.cli.framework import json_option, print_json, wants_json
from licplane.cli.output import show_fields, show_table
from licplane.cli.place import place_options
from licplane.errors import ExitCode, PlaneError
from licplane.service.answers import ChangeResult
from licplane.service.requests import Change, Document
from lictoken.fields import suggestion

Completion = Callable[[click.Context, click.Parameter, str], list[str]]


def documents_of(backend: Backend, kind: str) -> list[Document]:
    """Every document of a kind, by name."""
    return list(every(lambda page: backend.list_objects(kind, page)))


def document_of(backend: Backend, kind: str, name: str) -> Document:
    """One document. Raises PlaneError NOT_FOUND with the nearest name."""
    found = documents_of(backend, kind)
    for one in found:
        if one.name == name:
            return one
    raise PlaneError(
        ExitCode.NOT_FOUND,
        f"There is no {kind} {name}{suggestion(name, [one.name for one in found])}",
        f"`licplane {kind} list` shows all",
    )


def apply_documents(
    backend: Backend,
    change: Change,
    documents: Sequence[Document],
    *,
    prune: bool = False,
    delete: bool = False,
) -> ChangeResult:
    """Backend.apply, in which a bad document is REFUSED: the command line itself was right."""
    try:
        return backend.apply(change, documents, prune=prune, delete=delete)
    except PlaneError as error:
        if error.code is not ExitCode.USAGE:
            raise
        raise PlaneError(ExitCode.REFUSED, error.message, error.hint) from error


def to_document(one: Declared, etag: str = "") -> Document:
    """What a file declares, as the service takes it."""
    text = json.dumps(one.document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return Document(one.kind, one.name, text, etag)


def object_document(one: Document) -> dict[str, object]:
    """A document for JSON."""
    return {
        "name": one.name,
        "revision": one.revision,
        "etag": one.etag,
        "document": json.loads(one.json),
    }


def scope_text(document: dict[str, object]) -> str:
    """Where a document counts, in one line."""
    scope = document.get("scope")
    if not isinstance(scope, dict) or not scope:
        return "everywhere"
    parts = []
    for key, value in scope.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        if text:
            parts.append(f"{key}={text}")
    return " ".join(parts) or "everywhere"


def _group(kind: str, text: str, complete: Completion, columns: tuple[str, ...]) -> click.Group:
    @click.group(kind, help=text)
    def group() -> None:
        """Replaced by `text`."""

    @group.command("list", help=f"List the {kind}s.")
    @place_options
    @json_option
    def list_() -> None:
        with reading() as backend:
            found = documents_of(backend, kind)
        if wants_json():
            print_json({f"{kind}s": [object_document(one) for one in found]})
            return
        rows = []
        for one in found:
            document = json.loads(one.json)
            cells = [_cell(document.get(column)) for column in columns]
            rows.append((one.name, *cells, scope_text(document), one.revision))
        show_table(
            ("NAME", *(column.upper() for column in columns), "SCOPE", ">REVISION"),
            rows,
            empty=f"There are no {kind}s. `licplane apply -f FILE` puts some in force.",
        )

    @group.command("show", help=f"Show the {kind} NAME.")
    @click.argument("name", metavar="NAME", shell_complete=complete)
    @place_options
    @json_option
    def show(name: str) -> None:
        with reading() as backend:
            found = document_of(backend, kind, name)
        if wants_json():
            print_json({kind: object_document(found)})
            return
        document = json.loads(found.json)
        rows = [(key, _value(value)) for key, value in document.items()]
        show_fields([*rows, ("revision", str(found.revision)), ("etag", found.etag)])

    @group.command("put", help=f"Put the {kind} in FILE (YAML or TOML) in force, as `apply` does.")
    @click.argument("file", type=click.Path(allow_dash=True, path_type=Path))
    @change_options
    @json_option
    def put(change: Change, passphrase_file: Path | None, file: Path) -> None:
        found = read_declared([file])
        if [one.kind for one in found] != [kind]:
            raise PlaneError(
                ExitCode.REFUSED,
                f"{file} has {len(found)} documents, not one {kind}",
                "Use `licplane apply -f FILE` for several",
            )
        document = to_document(found[0], change.etag)
        with changing(passphrase_file) as backend:
            result = apply_documents(backend, change, [document])
        show_change(result, f"Put {kind} {found[0].name}.")

    @group.command("delete", help=f"Delete the {kind} NAME.")
    @click.argument("name", metavar="NAME", shell_complete=complete)
    @change_options
    @json_option
    def delete(change: Change, passphrase_file: Path | None, name: str) -> None:
        with changing(passphrase_file) as backend:
            found = document_of(backend, kind, name)
            named = Document(kind, found.name, "", change.etag)
            result = apply_documents(backend, change, [named], delete=True)
        show_change(result, f"Deleted {kind} {name}.")

    return group


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value) if value not in (None, "") else "-"


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


resource = _group(
    "resource",
    "Show and change what is licensed: networks, services and the rest.",
    complete_resource,
    ("kind", "mode"),
)
binding = _group(
    "binding",
    "Show and change who uses which license.",
    complete_binding,
    ("license", "selectors"),
)
