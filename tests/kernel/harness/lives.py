# SPDX-License-Identifier: Apache-2.0
"""Many short lives of one daemon, each ended by kill -9: ``lives.py COUNT``.

Each life is a fork of this process, which has the daemon's modules loaded already: the same
code as ``python -m licagent.daemon.main`` without 0.2 s of imports, so that a thousand lives
fit a test. The settings come from LICAGENT_CONFIG as ever. Every second life is let start
wholly before it is killed; the others die at moments spread evenly over the start, the loader
process and the writing of tables included. Prints one line of JSON at the end.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from licagent.daemon.main import run
from licagent.domain.config import AgentConfig
from licagent.domain.config_reader import read_config

LIMIT_S = 60.0
FIRST_GUESS_S = 0.1


def is_alive(pid: int) -> bool:
    """Whether a child still runs; a life that ends by itself is a failure, reported below."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def answers(path: Path) -> bool:
    """Whether a daemon listens on the local socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(path))
        except OSError:
            return False
    return True


def live(config: AgentConfig, die_after_s: float | None) -> tuple[float, str]:
    """One life; how long it was, and what went wrong."""
    begun = time.monotonic()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            status = run(config)
        finally:
            os._exit(status)
    problem = ""
    while is_alive(pid):
        age_s = time.monotonic() - begun
        if die_after_s is not None and age_s >= die_after_s:
            break
        if die_after_s is None and answers(config.socket_path):
            break
        if age_s > LIMIT_S:
            problem = "it did not answer"
            break
        time.sleep(0.001)
    age_s = time.monotonic() - begun
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status):
        problem = f"it ended by itself with status {os.waitstatus_to_exitcode(status)}"
    return age_s, problem


def main() -> int:
    """Live COUNT times."""
    count = int(sys.argv[1])
    config = read_config(os.environ).config
    start_s = FIRST_GUESS_S  # of a whole start, learnt on the way
    problems: list[str] = []
    begun = time.monotonic()
    for number in range(count):
        if number % 2 == 0:
            age_s, problem = live(config, None)
            start_s = age_s
        else:
            # The golden ratio spreads the moments evenly however many there are.
            _, problem = live(config, start_s * ((number * 0.618034) % 1.0))
        if problem:
            problems.append(f"life {number}: {problem}")
    took_s = time.monotonic() - begun
    sys.stdout.write(json.dumps({"lives": count, "problems": problems, "took_s": took_s}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
