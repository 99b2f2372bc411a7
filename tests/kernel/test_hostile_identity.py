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
from tests.kernel.harness.dial import Destination, answer_of, binding
from tests.kernel.harness.subjects import new_jti, path_of

pytest_plugins = ["tests.kernel.harness.fixtures"]

NOBODY: Final = 65534

# Says {"errno": N} for every line it reads, of a UDP connect to argv[1]:argv[2]. A line that
# begins with "b" makes it argv[3] first: anybody may say what /proc/PID/exe is once nothing of
# the old file is mapped, in a user namespace of their own (prctl(2), PR_SET_MM_MAP).
SPOOF: Final = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

static struct { unsigned long from, to; int protection; } parts[32];

static int dial(char **argv)
{
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[2])) };
    int sock = socket(AF_INET, SOCK_DGRAM, 0), failed;

    inet_pton(AF_INET, argv[1], &to.sin_addr);
    failed = connect(sock, (void *)&to, sizeof(to)) ? errno : 0;
    close(sock);
    return failed;
}

static int become(const char *other)
{
    char line[512], me[256], stat[2048], *word;
    unsigned long long fields[60] = { 0 };
    int count = 0, at = 3, file = open(other, O_RDONLY);
    long length = readlink("/proc/self/exe", me, sizeof(me) - 1);
    FILE *maps;

    if (unshare(CLONE_NEWUSER))
        return errno;
    me[length] = 0;
    maps = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof(line), maps)) {
        unsigned long from, to;
        char may[8];

        if (!strstr(line, me) || sscanf(line, "%lx-%lx %7s", &from, &to, may) != 3)
            continue;
        parts[count].from = from;
        parts[count].to = to;
        parts[count++].protection = (may[0] == 'r') | (may[1] == 'w') * 2 | (may[2] == 'x') * 4;
    }
    fclose(maps);
    for (int i = 0; i < count; i++) {
        size_t size = parts[i].to - parts[i].from;
        void *copy = mmap(0, size, 7, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        memcpy(copy, (void *)parts[i].from, size);
        mprotect(copy, size, parts[i].protection ? parts[i].protection : 1);
        if (mremap(copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)parts[i].from) ==
            MAP_FAILED)
            return errno;
    }
    length = read(open("/proc/self/stat", O_RDONLY), stat, sizeof(stat) - 1);
    stat[length] = 0;
    for (word = strtok(strrchr(stat, ')') + 2, " "); word && at < 60; word = strtok(0, " "))
        fields[at++] = strtoull(word, 0, 10);
    struct prctl_mm_map map = {
        .start_code = fields[26], .end_code = fields[27], .start_data = fields[45],
        .end_data = fields[46], .start_brk = fields[47], .brk = (unsigned long)sbrk(0),
        .start_stack = fields[28], .arg_start = fields[48], .arg_end = fields[49],
        .env_start = fields[50], .env_end = fields[51], .exe_fd = file,
    };
    return prctl(PR_SET_MM, PR_SET_MM_MAP, &map, sizeof(map), 0) ? errno : 0;
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
    subprocess.run(["gcc", "-O1", "-static", "-o", target, folder / "spoof.c"], check=True)
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
