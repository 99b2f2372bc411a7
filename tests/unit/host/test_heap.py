# SPDX-License-Identifier: Apache-2.0
"""The heap of a process with threads: one arena, and what is free goes back."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")

PROGRAM = """
import ctypes, re, sys, threading
from licagent.host import heap

if sys.argv[1] == "small":
    assert heap.keep_small()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def allocate():
    got = [libc.malloc(4000) for _ in range(500)]
    done.wait()
    for each in got[:-1]:
        libc.free(each)
done = threading.Barrier(5)
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
done.wait()
for thread in threads:
    thread.join()
def rss():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = rss()
heap.give_back()
print(open("/proc/self/maps").read().count("[heap]"), before - rss(), flush=True)
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


def run(how: str) -> tuple[int, int]:
    """Number of arenas, and KiB that `give_back` gave back."""
    command = [sys.executable, "-c", PROGRAM, how]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return text.count("<heap nr="), int(text.split()[1])


def test_threads_share_one_arena_and_what_is_free_inside_goes_back() -> None:
    assert ctypes.CDLL(None).mallopt
    arenas, given_back_kib = run("small")
    assert arenas == 1
    assert given_back_kib > 4000
    assert run("as it is")[0] > 1
