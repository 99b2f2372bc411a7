# SPDX-License-Identifier: Apache-2.0
"""`licplane serve`: the control plane as a server. The first start makes what it needs."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from licplane.cli.framework import passphrase_option, say
from licplane.cli.parsing import duration_s
from licplane.cli.passphrase import passphrase
from licplane.cli.place import Place, place, state_option
from licplane.cli.starting import log_to_stderr, open_for_server, prepare
from licplane.errors import ExitCode, PlaneError

if TYPE_CHECKING:
    from licplane.api.settings import Addresses, ServerSettings

_ANY: Final = frozenset({"0.0.0.0", "::", "[::]", "*", ""})  # noqa: S104 - what others say


class Seconds(click.ParamType[int] if TYPE_CHECKING else click.ParamType):  # type: ignore[misc]
    """A duration such as 10m or 12h, as seconds."""

    name = "time"

    def __init__(self, low_s: int, high_s: int) -> None:
        self._low_s = low_s
        self._high_s = high_s

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The seconds."""
        found = value if isinstance(value, int) else duration_s(str(value))
        if not self._low_s <= found <= self._high_s:
            self.fail(f"{value} is not within {self._low_s}..{self._high_s} seconds", param, ctx)
        return found


@click.command()
@click.option(
    "--listen",
    default="127.0.0.1:8443",
    show_default=True,
    envvar="LICPLANE_LISTEN",
    show_envvar=True,
    metavar="HOST:PORT",
    help="Mutual TLS, for hosts and administrators.",
)
@click.option(
    "--public-listen",
    default="127.0.0.1:8444",
    show_default=True,
    envvar="LICPLANE_PUBLIC_LISTEN",
    show_envvar=True,
    metavar="HOST:PORT",
    help="TLS, for hosts that join, and administrators with a token.",
)
@click.option(
    "--metrics-listen",
    default="",
    envvar="LICPLANE_METRICS_LISTEN",
    show_envvar=True,
    metavar="HOST:PORT",
    help="Prometheus metrics and health over plain HTTP; worker N takes the port plus N."
    "  [default: none]",
)
@click.option(
    "--control-address",
    default="",
    envvar="LICPLANE_CONTROL_ADDRESS",
    show_envvar=True,
    metavar="HOST:PORT",
    help="--listen as hosts reach it, for join tokens.  [default: as it listens, or this"
    " machine's name]",
)
@click.option(
    "--public-address",
    default="",
    envvar="LICPLANE_PUBLIC_ADDRESS",
    show_envvar=True,
    metavar="HOST:PORT",
    help="--public-listen as hosts reach it, for join tokens.  [default: likewise]",
)
@click.option(
    "--server-name",
    "server_names",
    multiple=True,
    envvar="LICPLANE_SERVER_NAMES",
    show_envvar=True,
    metavar="NAME",
    help="One more name or address for the server's certificate (repeatable).",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    envvar="LICPLANE_WORKERS",
    show_envvar=True,
    metavar="N",
    help="Processes that share both addresses.",
)
@click.option(
    "--lease-ttl",
    type=Seconds(10, 86_400),
    default="10m",
    show_default=True,
    envvar="LICPLANE_LEASE_TTL",
    show_envvar=True,
    metavar="TIME",
    help="How long a host may use licenses without hearing from here (10s to 1d).",
)
@click.option(
    "--certificate-ttl",
    type=Seconds(60, 30 * 86_400),
    default="12h",
    show_default=True,
    envvar="LICPLANE_CERTIFICATE_TTL",
    show_envvar=True,
    metavar="TIME",
    help="Life of the hosts' certificates; they renew at half of it (1m to 30d).",
)
@click.option(
    "--report-interval",
    type=Seconds(1, 3_600),
    default="30s",
    show_default=True,
    envvar="LICPLANE_REPORT_INTERVAL",
    show_envvar=True,
    metavar="TIME",
    help="How often hosts report (1s to 1h).",
)
@click.option(
    "--trigger-commands",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    envvar="LICPLANE_TRIGGER_COMMANDS",
    show_envvar=True,
    metavar="DIR",
    help="Programs that triggers may run, by name, with the event on standard input."
    "  [default: none]",
)
@click.option(
    "--issuer",
    default="licplane",
    show_default=True,
    envvar="LICPLANE_ISSUER",
    show_envvar=True,
    metavar="NAME",
    help="In whose name a key is made at the first start, where there is none.",
)
@click.option(
    "--unencrypted",
    is_flag=True,
    help="At the first start, keep private keys in the clear. For tests and demos only.",
)
@passphrase_option
@state_option
@click.pass_context
def serve(
    context: click.Context,
    *,
    listen: str,
    public_listen: str,
    metrics_listen: str,
    control_address: str,
    public_address: str,
    server_names: tuple[str, ...],
    workers: int,
    lease_ttl: int,
    certificate_ttl: int,
    report_interval: int,
    trigger_commands: Path | None,
    issuer: str,
    unencrypted: bool,
    passphrase_file: Path | None,
) -> None:
    """Serve hosts and administrators until SIGTERM or Ctrl-C.

    The first start makes a database in the state folder, a certification authority and a signing
    key, encrypted under the passphrase. With --database several servers may share one database.

    \b
    licplane serve --passphrase-file /root/licplane.passphrase \\
        --listen 0.0.0.0:8443 --public-listen 0.0.0.0:8444
    """
    where = place().check()
    if where.remote:
        raise click.UsageError("--server names a licplane to ask; serve runs one here.")
    for option, value in (("--listen", listen), ("--public-listen", public_listen)):
        _check_address(option, value)
    control = control_address or _advertised(listen)
    public = public_address or _advertised(public_listen)
    for option, value in (("--control-address", control), ("--public-address", public)):
        if value:
            _check_address(option, value)
    words = None if unencrypted else passphrase(passphrase_file)
    log_to_stderr()
    prepare(where, issuer=issuer, words=words, unencrypted=unencrypted)

    from licplane.api.server import serve as run
    from licplane.api.settings import ServerSettings

    settings = ServerSettings(
        listen=listen,
        public_listen=public_listen,
        metrics_listen=metrics_listen,
        control_address=control,
        public_address=public,
        server_names=server_names,
        workers=workers,
        lease_ttl_s=lease_ttl,
        certificate_ttl_s=certificate_ttl,
        report_interval_s=report_interval,
        trigger_commands=str(trigger_commands.absolute()) if trigger_commands else "",
    )
    status = run(
        settings,
        partial(open_for_server, where, words, again=_again(passphrase_file)),
        started=partial(_started, where, settings),
    )
    say("Stopped.")
    context.exit(status)


def _started(where: Place, settings: ServerSettings, addresses: Addresses) -> None:
    """Every worker accepts connections: write down where, and say what to do next."""
    from licplane.cli.local import open_store, remember_addresses

    control = settings.control_address or addresses.control
    public = settings.public_address or addresses.public
    with open_store(where) as store:
        remember_addresses(store, public=public, control=control)
    workers = f", {settings.workers} workers" if settings.workers > 1 else ""
    say(f"Serving hosts and administrators on {addresses.control} (mutual TLS){workers}.")
    say(f"Hosts join on {addresses.public} (TLS). They are told: {control} and {public}.")
    if addresses.metrics:
        say(f"Metrics: {', '.join(f'http://{one}/metrics' for one in addresses.metrics)}")
    say(
        "What to do next, in another terminal:\n"
        "  let a host join:           licplane token create --label org=NAME"
        "   (there: licagent enroll JOIN)\n"
        "  declare what is licensed:  licplane apply -f DIR --dry-run\n"
        "  see the fleet:             licplane host list"
    )


def _again(file: Path | None) -> Path | None:
    """A passphrase file that can be read another time."""
    return file.absolute() if file is not None and file.is_file() else None


def _advertised(listen: str) -> str:
    """This machine's name where it listens on every address; else "", which is as it listens."""
    host, _, port = listen.rpartition(":")
    return f"{socket.gethostname()}:{port}" if host in _ANY and port != "0" else ""


def _check_address(option: str, value: str) -> None:
    host, colon, port = value.rpartition(":")
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else -1
    if not colon or not 0 <= number <= 65535 or (":" in host and not host.startswith("[")):
        raise PlaneError(
            ExitCode.USAGE,
            f"{option} {value!r} is no address",
            "Write HOST:PORT, as in 0.0.0.0:8443 or [::]:8443",
        )
