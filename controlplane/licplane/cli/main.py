# SPDX-License-Identifier: Apache-2.0
"""Entry point of `licplane`."""

from __future__ import annotations

import click

from licplane.cli.framework import ErrorGroup
from licplane.cli.keys import keys
from licplane.cli.license import license


@click.group(
    cls=ErrorGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="licagent", prog_name="licplane", message="%(prog)s %(version)s")
def cli() -> None:
    """Issue licenses for licagent, and end them.

    Data goes to standard output, words to standard error. Exit codes: 0 done, 1 internal,
    2 usage, 5 permission, 6 not found, 7 refused, 8 busy.
    """


cli.add_command(keys)
cli.add_command(license)


def main() -> None:
    """Run the command line."""
    cli(prog_name="licplane")
