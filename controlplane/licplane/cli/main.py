# SPDX-License-Identifier: Apache-2.0
"""Entry point of `licplane`.

A command's module is imported when the command runs, and its name and one line of help stand
here, so that `licplane --help` and completion do not pay for the others (nor for gRPC).
"""

from __future__ import annotations

import importlib
from typing import Final

import click

from licplane.cli.framework import EXITS, ErrorGroup
from licplane.cli.place import root_options

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    # name: (module:attribute below licplane.cli, one line of help)
    "serve": ("serve:serve", "Run the control plane (a service does this)."),
    "keys": ("keys:keys", "Make, list and retire the keys that sign licenses."),
    "ca": ("ca:ca", "Show and change the certification authority."),
    "license": ("license:license", "Issue licenses, show them, and end them."),
    "apply": ("apply:apply", "Put resources, bindings and licenses of files in force."),
    "resource": ("objects:resource", "Show and change what is licensed."),
    "binding": ("objects:binding", "Show and change who uses which license."),
    "host": ("host:host", "List hosts, label them, and end their membership."),
    "token": ("token:token", "Make, list and delete the tokens that hosts join with."),
    "shadow": ("shadow:shadow", "Who uses which resource with no binding, over all hosts."),
    "usage": ("usage:usage", "What was used, in any window, and what a bill is made of."),
    "price": ("billing_documents:price", "Show and change price plans."),
    "billing": ("billing:billing", "Show bills, close periods and correct them."),
    "budget": ("billing_documents:budget", "Show and change budgets, and where they will end."),
    "trigger": ("billing_documents:trigger", "Who is told when usage passes a threshold."),
    "report": ("report:report", "Make the compliance report."),
    "export": ("report:export", "Give usage and bills to other programs."),
    "admin": ("admin:admin", "Hand out and end credentials of administrators."),
    "audit": ("audit:audit", "Read the audit log, and check that nobody changed it."),
    "backup": ("backup:backup", "Copy the whole control plane, and put a copy back."),
    "db": ("db:db", "Show and change the version of the database's schema."),
}


class LazyGroup(ErrorGroup):
    """The root group; its commands are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        """The commands in the order people need them."""
        return list(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's
        cmd_name: str,
    ) -> click.Command | None:
        """The command, its module imported now."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(f"licplane.cli.{module}"), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{attribute} is no command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest command suggested for one that is not there."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's
        formatter: click.HelpFormatter,
    ) -> None:
        """The list of commands in --help, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def format_epilog(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's
        formatter: click.HelpFormatter,
    ) -> None:
        """The exit statuses, one per class of error."""
        with formatter.section("Exit status"):
            formatter.write_dl([(str(status), meaning) for status, meaning in EXITS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@root_options
@click.version_option(package_name="licagent", prog_name="licplane", message="%(prog)s %(version)s")
def cli() -> None:
    """The control plane of licagent: licenses, policy and hosts of a fleet.

    Commands work on the state folder or database of this machine, or with --server on a running
    licplane elsewhere. Data goes to standard output, words to standard error; --json prints one
    object with a schema_version.
    """


def main() -> None:
    """Run the command line."""
    cli(prog_name="licplane")


if __name__ == "__main__":
    main()
