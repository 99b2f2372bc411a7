# SPDX-License-Identifier: Apache-2.0
"""Shell completion of names that only the store knows. It never asks a server."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from licplane.cli.place import place
from licplane.errors import PlaneError

if TYPE_CHECKING:
    from licplane.store.database import Reader

Names = Callable[["Reader"], Iterable[str]]


def _complete(context: click.Context, incomplete: str, names: Names) -> list[str]:
    from licplane.cli.local import open_store

    where = place(context)
    if where.remote:
        return []
    try:
        with open_store(where) as store, store.reading() as reader:
            return [name for name in names(reader) if name.startswith(incomplete)]
    except (OSError, PlaneError):
        return []  # a completion has nowhere to complain


def complete_kid(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Ids of signing keys."""
    from licplane.store.record_model import KeyKind

    return _complete(
        context, incomplete, lambda reader: [key.key_id for key in reader.keys(KeyKind.ISSUER)]
    )


def complete_license(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Ids of licenses."""
    return _complete(context, incomplete, lambda reader: reader.license_ids())


def complete_host(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Ids and names of hosts."""
    return _complete(
        context,
        incomplete,
        lambda reader: [
            name for host in reader.hosts(limit=1000) for name in (host.hostname, host.host_id)
        ],
    )


def complete_token(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Ids of join tokens."""
    return _complete(
        context, incomplete, lambda reader: [one.token_id for one in reader.join_tokens(limit=1000)]
    )


def complete_admin(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Names of administrators."""
    return _complete(
        context, incomplete, lambda reader: sorted({one.name for one in reader.admins()})
    )


def complete_resource(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Names of resources."""
    from licplane.store.catalog_model import Kind

    return _complete(
        context,
        incomplete,
        lambda reader: [one.name for one in reader.objects(Kind.RESOURCE, limit=1000)],
    )


def complete_binding(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Names of bindings."""
    from licplane.store.catalog_model import Kind

    return _complete(
        context,
        incomplete,
        lambda reader: [one.name for one in reader.objects(Kind.BINDING, limit=1000)],
    )
