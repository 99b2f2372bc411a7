# SPDX-License-Identifier: Apache-2.0
"""`licplane shadow`: who uses which resource with no binding, over all hosts."""

from __future__ import annotations

import click

from licplane.cli.backend import every
from licplane.cli.changes import reading
from licplane.cli.framework import json_option, print_json, say, wants_json
from licplane.cli.output import moment, moment_or_none, safe, show_table
from licplane.cli.place import place_options
from licplane.service.answers import ShadowUsageView


@click.command()
@click.option("--resource", metavar="NAME", help="Only of this resource.")
@click.option(
    "--bindings",
    is_flag=True,
    help="Print the bindings that would allow it, as TOML for `licplane apply -f`.",
)
@place_options
@json_option
def shadow(resource: str | None, *, bindings: bool) -> None:
    """Show who uses which resource with no binding, over all hosts.

    Before a resource is enforced, this is the list of those who would be denied, and with
    --bindings the policy that would allow them. Read it before you apply it: it allows whoever
    used the resource, whether or not they should.
    """
    with reading() as backend:
        found = [
            one for one in every(backend.list_shadow_usage) if resource in (None, one.resource)
        ]
    if wants_json():
        print_json({"usage": [usage_document(one) for one in found]})
        return
    if bindings:
        for one in found:
            click.echo(f"# {safe(_who(one))}: {one.count} uses on {one.hosts} hosts")
            click.echo("\n".join(safe(line) for line in one.suggestion.strip().splitlines()))
            click.echo()
    else:
        show_table(
            ("RESOURCE", "WORKLOAD", "PROGRAM", "USER", ">HOSTS", ">USES", "LAST"),
            [
                (
                    one.resource,
                    one.selector,
                    one.executable or "-",
                    one.user or "-",
                    one.hosts,
                    one.count,
                    moment(one.last_unix_ms),
                )
                for one in found
            ],
        )
        if found:
            say("The bindings that would allow it: licplane shadow --bindings")
    if not found:
        say("Nobody uses a resource without a binding.")


def _who(one: ShadowUsageView) -> str:
    program = f" ({one.executable})" if one.executable else ""
    return f"{one.resource} by {one.selector}{program}"


def usage_document(one: ShadowUsageView) -> dict[str, object]:
    """One line of shadow usage for JSON."""
    return {
        "resource": one.resource,
        "selector": one.selector,
        "executable": one.executable,
        "user": one.user,
        "hosts": one.hosts,
        "count": one.count,
        "first_at": moment_or_none(one.first_unix_ms),
        "last_at": moment_or_none(one.last_unix_ms),
        "suggestion": one.suggestion,
    }
