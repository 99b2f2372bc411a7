# SPDX-License-Identifier: Apache-2.0
"""The command `licagent`.

A command's module is imported when the command runs, and its name and one line of help stand
here, so that neither `licagent status` nor `licagent --help` pays for the others.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Final, NoReturn

import click

from licagent.cli.exits import EXITS, INTERNAL, INTERRUPTED, abandon_output

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    # name: (module:attribute below licagent.cli.commands, one line of help)
    "status": ("status:status", "Is this host enforcing, and is all well?"),
    "explain": ("explain:explain", "Why may a process or socket do what it does, or not?"),
    "events": ("events:events", "Decisions and changes, oldest first."),
    "shadow": ("shadow:shadow", "Who would be refused if this host enforced?"),
    "usage": ("usage:usage_group", "What was used, by license, process, unit and more."),
    "top": ("top:top", "Use as it happens, by process, unit or license."),
    "license": ("license:license_group", "Add, list, show, remove and revoke licenses."),
    "policy": ("policy:policy_group", "Check, apply and show resources and bindings."),
    "run": ("run:run", "Run a command under a license."),
    "doctor": ("doctor:doctor", "Check this host and what can be closed on it."),
    "break-glass": ("break_glass:break_glass", "Open the host for a bounded time, on the record."),
    "enroll": ("enroll:enroll", "Join a control plane."),
    "leave": ("leave:leave", "Leave the control plane, with the last usage settled."),
    "config": ("config:config_group", "Check the agent's settings."),
    "daemon": ("daemon:daemon", "Run the agent (a service does this)."),
    "detach": ("detach:detach", "Take enforcement away from this host."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported on first use."""

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
        command = getattr(importlib.import_module(f"licagent.cli.commands.{module}"), attribute)
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


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version("licagent")
    except PackageNotFoundError:
        number = "unknown (not installed)"
    click.echo(f"licagent {number}")
    ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Settings file; else LICAGENT_CONFIG, else /etc/licagent/agent.toml.",
)
@click.option("--debug", is_flag=True, help="Show a traceback for an internal error.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and exit.",
)
@click.pass_context
def cli(ctx: click.Context, config_path: Path | None, debug: bool) -> None:
    """Infrastructure as a licensed resource: no license, no access.

    The kernel decides on every connection; these commands ask the agent about it and change
    what it decides by. Output is a table on a terminal, aligned text in a pipe, JSON with --json.
    """
    ctx.meta["licagent.config_path"] = config_path
    ctx.meta["licagent.debug"] = debug


def main() -> NoReturn:
    """Entry point: `cli`, with every way to end turned into its exit status."""
    try:
        status = cli.main(prog_name="licagent", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        status = INTERRUPTED
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        click.echo(f"licagent: internal error: {type(error).__name__}: {error}", err=True)
        click.echo("  run it again as `licagent --debug ...` and report the traceback", err=True)
        status = INTERNAL
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = abandon_output()
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
