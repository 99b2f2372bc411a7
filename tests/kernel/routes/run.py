# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.kernel.routes.run NAME ADDRESS PORT`: walk one route and report as JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys

from tests.kernel.routes.base import PATIENCE_S, Context, execute
from tests.kernel.routes.catalogue import HELPERS, ROUTES


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kernel.routes.run")
    parser.add_argument("name", choices=sorted({*ROUTES, *HELPERS}), metavar="NAME")
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--decoy-port", type=int, default=0, help="a server that is no resource")
    parser.add_argument("--token", default="route-token", help="the payload to look for")
    parser.add_argument("--uid", type=int, help="become this user and group before the start")
    parser.add_argument("--patience", type=float, default=PATIENCE_S, help="seconds")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args(arguments)
    context = Context(
        address=given.address,
        port=given.port,
        decoy_port=given.decoy_port,
        token=given.token.encode(),
        options=dict(option.split("=", 1) for option in given.option),
        patience_s=given.patience,
    )
    program = HELPERS.get(given.name) or ROUTES[given.name].program
    if given.uid is not None:
        os.setgroups([])
        os.setresgid(given.uid, given.uid, given.uid)
        os.setresuid(given.uid, given.uid, given.uid)
    report = execute(program, context)
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
