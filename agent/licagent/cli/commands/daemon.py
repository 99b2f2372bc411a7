# SPDX-License-Identifier: Apache-2.0
"""`licagent daemon`: run the agent."""

from __future__ import annotations

import importlib
import os

import click

from licagent.cli.session import Session, with_session


@click.command(short_help="Run the agent (a service does this).")
@click.option(
    "--load-only", is_flag=True, help="Put the last policy into the kernel, then end (at boot)."
)
@click.option("--uplink", is_flag=True, help="Be the daemon's way out (licagent-uplink.service).")
@with_session()
def daemon(session: Session, load_only: bool, uplink: bool) -> None:
    """Run the agent in the foreground, until SIGTERM or SIGINT.

    Ending it does not end enforcement: the kernel goes on deciding. SIGHUP reads licenses and
    policy again. `licagent detach` takes enforcement away.
    """
    if uplink:
        way_out = importlib.import_module("licagent.daemon.outside").run
        raise click.exceptions.Exit(int(way_out()))
    # By name: the command line stands beside the daemon, not above it, and only this command
    # may load it.
    start = importlib.import_module("licagent.daemon.main").start
    status = start(os.environ, session.config_path, load_only=load_only)
    raise click.exceptions.Exit(int(status or 0))
