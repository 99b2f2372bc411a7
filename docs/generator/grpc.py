# SPDX-License-Identifier: Apache-2.0
"""docs/reference/grpc.md: services and messages of `licapi.control.v1`, from proto/.

Names, numbers, types and words are those of the .proto files: protoc reads them, and gives the
comments back by their place. What has no comment has no words here either.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)
from grpc_tools import protoc

from generator.pages import page, table

PROTO: Final = Path(__file__).resolve().parents[2] / "proto"
PACKAGE: Final = "licapi/control/v1"

# Numbers of fields in descriptor.proto: a comment's place is a path of these and of indices.
_FILE_MESSAGES, _FILE_ENUMS, _FILE_SERVICES, _FILE_SYNTAX = 4, 5, 6, 12
_MESSAGE_FIELDS, _MESSAGE_NESTED, _MESSAGE_ENUMS = 2, 3, 4
_ENUM_VALUES = _SERVICE_METHODS = 2

_LISTENERS: Final = {
    "Enrollment": "`Enroll` and `Reenroll`: `--public-listen`; `Renew`: `--listen`",
    "Sync": "`--listen`, hosts",
    "Telemetry": "`--listen`, hosts",
    "Admin": "`--listen` with an administrator's certificate, `--public-listen` with a token",
}

Place = tuple[int, ...]


def grpc() -> str:
    """The page."""
    files = [_Documented(file) for file in _files()]
    return page(
        "gRPC",
        "What agents, administrators and the control plane say to each other: package "
        "`licapi.control.v1`, from the files in `proto/`. Everything runs over TLS 1.3; "
        "[roles](roles.md) has who may call what. `./dev proto` makes the Python package `licapi` "
        "of the same files. Fields are added and never given another meaning; a number is not used "
        "again.",
        "## Services",
        table(
            ("service", "listener of `licplane serve`", "for"),
            (
                (f"[`{name}`](#{name.lower()})", _LISTENERS[name], words)
                for file in files
                for name, words in file.services()
            ),
        ),
        *(part for file in files for part in file.parts()),
    )


def _files() -> Sequence[FileDescriptorProto]:
    names = sorted(path.relative_to(PROTO).as_posix() for path in (PROTO / PACKAGE).glob("*.proto"))
    with tempfile.NamedTemporaryFile() as out:
        options = (f"--proto_path={PROTO}", f"--descriptor_set_out={out.name}")
        status = protoc.main(["", *options, "--include_source_info", *names])
        if status != 0:
            raise ValueError(f"protoc ended with {status}")
        found = FileDescriptorSet.FromString(Path(out.name).read_bytes())
    return sorted(found.file, key=lambda file: not file.service)  # what all share comes last


class _Documented:
    """One file, and the comments in it."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._file = file
        self._words: dict[Place, str] = {}
        for location in file.source_code_info.location:
            if tuple(location.path) == (_FILE_SYNTAX,):  # the license, then what the file is for
                self._words[()] = " ".join(location.leading_comments.split())
            elif location.leading_comments:
                text = " ".join(location.leading_comments.split())
                self._words[tuple(location.path)] = text

    def services(self) -> Iterator[tuple[str, str]]:
        """Name and purpose of each service: what the file says of itself."""
        for service in self._file.service:
            yield service.name, self._words.get((), "")

    def parts(self) -> Iterator[str]:
        """The paragraphs and tables of this file."""
        for index, service in enumerate(self._file.service):
            place = (_FILE_SERVICES, index)
            yield f"## {service.name}"
            yield from self._said(place)
            yield table(
                ("call", "asks with", "answers with", ""),
                (
                    self._method((*place, _SERVICE_METHODS, number), method)
                    for number, method in enumerate(service.method)
                ),
            )
        if not self._file.service:
            yield f"## Shared messages\n\n{self._words.get((), '')}"
        for index, message in enumerate(self._file.message_type):
            yield from self._message((_FILE_MESSAGES, index), message, "")
        for index, enum in enumerate(self._file.enum_type):
            yield from self._enum((_FILE_ENUMS, index), enum, "")

    def _said(self, *places: Place) -> Iterator[str]:
        for place in places:
            if words := self._words.get(place):
                yield words
                return

    def _method(self, place: Place, method: MethodDescriptorProto) -> tuple[str, ...]:
        return (
            f"`{method.name}`",
            _stream(method.input_type, many=method.client_streaming),
            _stream(method.output_type, many=method.server_streaming),
            self._words.get(place, ""),
        )

    def _message(self, place: Place, message: DescriptorProto, outer: str) -> Iterator[str]:
        if message.options.map_entry:
            return
        name = f"{outer}{message.name}"
        yield f"### {name}"
        yield from self._said(place)
        rows = [
            (
                f"`{field.name}`",
                field.number,
                _type(field, message),
                self._words.get((*place, _MESSAGE_FIELDS, number), ""),
            )
            for number, field in enumerate(message.field)
        ]
        yield table(("field", "number", "type", ""), rows) if rows else "No fields."
        for number, nested in enumerate(message.nested_type):
            yield from self._message((*place, _MESSAGE_NESTED, number), nested, f"{name}.")
        for number, enum in enumerate(message.enum_type):
            yield from self._enum((*place, _MESSAGE_ENUMS, number), enum, f"{name}.")

    def _enum(self, place: Place, enum: EnumDescriptorProto, outer: str) -> Iterator[str]:
        yield f"### {outer}{enum.name}"
        yield from self._said(place)
        yield table(
            ("value", "number", ""),
            (
                (f"`{value.name}`", value.number, self._words.get((*place, _ENUM_VALUES, at), ""))
                for at, value in enumerate(enum.value)
            ),
        )


def _stream(full_name: str, *, many: bool) -> str:
    return f"{'stream of ' if many else ''}{_link(full_name)}"


def _link(full_name: str) -> str:
    """A message or enum by its name, linked to its heading."""
    name = full_name.removeprefix(".licapi.control.v1.")
    return f"[`{name}`](#{name.replace('.', '').lower()})"


def _type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    if field.type_name:
        for entry in message.nested_type:
            if entry.options.map_entry and field.type_name.endswith(f".{entry.name}"):
                key, value = entry.field
                return f"map of {_type(key, entry)} to {_type(value, entry)}"
        shown = _link(field.type_name)
    else:
        kind = FieldDescriptorProto.Type.Name(field.type)
        shown = f"`{kind.removeprefix('TYPE_').lower()}`"
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"list of {shown}"
    if field.HasField("oneof_index") and not field.proto3_optional:
        return f"{shown}, one of `{message.oneof_decl[field.oneof_index].name}`"
    return f"{shown}, optional" if field.proto3_optional else shown
