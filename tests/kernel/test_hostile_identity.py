# SPDX-License-Identifier: Apache-2.0
"""A process that calls itself another executable after it was started."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path
from typing import Final

import pytest
from tests.kernel.harness import programs
from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.cgroups import CgroupTree
from tests.kernel.harness.dial import SOURCES, Destination, answer_of, binding
from tests.kernel.harness.subjects import new_jti, path_of

pytest_plugins = ["tests.kernel.harness.fixtures"]

NOBODY: Final = 65534

# Says {"errno": N} for every line it reads, of a UDP connect to argv[1]:argv[2]. A line that
# begins with "b" makes it argv[3] first.
SPOOF: Final = r"""
#include "become.h"
#include <arpa/inet.h>
#include <sys/socket.h>

static int dial(char **argv)
{
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[2])) };
    int sock = socket(AF_INET, SOCK_DGRAM, 0), failed;

    inet_pton(AF_INET, argv[1], &to.sin_addr);
    failed = connect(sock, (void *)&to, sizeof(to)) ? errno : 0;
    close(sock);
    return failed;
}

int main(int argc, char **argv)
{
    char line[64];

    setvbuf(stdout, 0, _IONBF, 0);
    while (argc == 4 && fgets(line, sizeof(line), stdin))
        printf("{\"errno\": %d}\n", line[0] == 'b' ? become(argv[3]) : dial(argv));
    return 0;
}
"""


@pytest.fixture
def spoof(folder: Path) -> Path:
    """The program above, built."""
    (folder / "spoof.c").write_text(SPOOF)
    target = folder / "spoof"
    subprocess.run(
        ["gcc", "-O1", "-static", f"-I{SOURCES}", "-o", target, folder / "spoof.c"], check=True
    )
    return target


def answer(program: programs.Program, command: bytes = b"dial") -> int:
    """The errno of a command."""
    assert program.process.stdin is not None
    program.process.stdin.write(command + b"\n")
    program.process.stdin.flush()
    line = program.line()
    assert line is not None, "it ended"
    return int(line["errno"])


def test_a_process_is_what_exec_made_it(agent: AgentUnderTest, dial: Path, spoof: Path) -> None:
    destination, jti = Destination(), new_jti()
    agent.issue(jti, ["r"])
    text = destination.resource() + binding(jti, path_of(dial))
    agent.policy(text)
    argv = [str(spoof), destination.address, str(destination.port), str(dial)]
    with CgroupTree(agent.cgroup) as tree:
        assert answer_of(tree.root, dial, destination, uid=NOBODY) == "OK"
        with programs.start(tree.root, argv, uid=NOBODY) as liar:
            assert answer(liar) == errno.ENOKEY
            failed = answer(liar, b"become")
            if failed in (errno.EINVAL, errno.EPERM, errno.ENOSPC):
                pytest.skip(f"PR_SET_MM_MAP is not for everybody here: {errno.errorcode[failed]}")
            assert failed == 0
            assert Path(f"/proc/{liar.pid}/exe").readlink() == dial
            assert answer(liar) == errno.ENOKEY

            # A new policy has the agent look at every process again, and so has its start.
            agent.policy(Destination().resource("r2", "observe") + text)
            assert answer(liar) == errno.ENOKEY
            agent.kill()
            agent.start()
            assert answer(liar) == errno.ENOKEY

            assert answer_of(tree.root, dial, destination, uid=NOBODY) == "OK"
