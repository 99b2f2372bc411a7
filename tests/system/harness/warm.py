# SPDX-License-Identifier: Apache-2.0
"""`licplane` commands without the time that Python takes to import what they need.

That is most of what a short command costs, and tests ask hundreds of times. A process that has
imported it all forks for each: the same entry point with the same words, in an environment and a
folder of its own. What the installed script adds to that, tests of pages and packages run.

Keys that are made here cost a millisecond to open instead of half a second: scrypt's cost stands
in the sealed key.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from typing import Any, Final

_STREAMS: Final = ("stdin", "stdout", "stderr")
_CHEAP: Final = (2**10, 8, 1)
"""The n, r and p of scrypt: the least that licplane takes."""


def licplane(*words: str, **where: Any) -> CompletedProcess[str]:
    """Run `licplane` to its end; `where` as for `call`."""
    return call(_command, words, **where)


def found(**where: Any) -> CompletedProcess[str]:
    """Make what `licplane serve` makes at its first start; `where` as for `call`."""
    return call(_found, (), **where)


def call(
    function: Callable[..., None],
    arguments: tuple[str, ...],
    *,
    environment: Mapping[str, str],
    folder: Path,
    stdin: str | None = None,
    timeout_s: float,
) -> CompletedProcess[str]:
    """Call it in a process of its own, to its end. Raises subprocess.TimeoutExpired."""
    with tempfile.TemporaryDirectory(prefix="licplane-command-") as name:
        streams = [Path(name, stream) for stream in _STREAMS]
        for path, text in zip(streams, (stdin or "", "", ""), strict=True):
            path.write_text(text)
        child = _context().Process(
            target=_become,
            args=(function, arguments, dict(environment), str(folder), list(map(str, streams))),
        )
        child.start()
        try:
            child.join(timeout_s)
            status = child.exitcode
        finally:
            child.kill()
            child.join()
            child.close()
        said = [path.read_text() for path in streams[1:]]
        if status is None:
            raise TimeoutExpired(arguments, timeout_s, *said)
        return CompletedProcess(arguments, status, *said)


@cache
def _context() -> ForkServerContext:
    from licplane.cli.main import COMMANDS

    made = multiprocessing.get_context("forkserver")
    modules = {f"licplane.cli.{where.partition(':')[0]}" for where, _ in COMMANDS.values()}
    made.set_forkserver_preload([__name__, "licplane.cli.local", "grpc", *sorted(modules)])
    return made


def _become(
    function: Callable[..., None],
    arguments: tuple[str, ...],
    environment: dict[str, str],
    folder: str,
    streams: list[str],
) -> None:
    """In the child: what a process that was started for it would have."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in enumerate(streams):
        opened = os.open(path, os.O_RDWR)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - as long as the process lasts
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115

    from licplane.issuer.sealedkey import Cost

    Cost.__init__.__defaults__ = _CHEAP
    function(*arguments)


def _command(*words: str) -> None:
    from licplane.cli.main import main

    sys.argv = ["licplane", *words]
    main()


def _found() -> None:
    from licplane.cli.place import Place
    from licplane.cli.starting import prepare

    prepare(
        Place(Path(os.environ["LICPLANE_STATE"]), os.environ.get("LICPLANE_DATABASE")),
        issuer="acme",
        words=os.environ["LICPLANE_PASSPHRASE"],
        unencrypted=False,
    )
