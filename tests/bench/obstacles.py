# SPDX-License-Identifier: Apache-2.0
"""What stands in the way of a bar, in words; shown with a row that missed it.

Gaps are filled from the same run: {measured}, {bar}, and for traffic {floor} (empty programs on
the same hooks over bare), {tag} (the same with a socket's tag), {own} (the agent over those).
"""

from __future__ import annotations

from typing import Final

_HOOKS: Final = (
    "Of {measured}, {floor} is the kernel's own price for having any program on these hooks"
    " (programs that return at once, same run), {tag} with the tag that ending an open"
    " connection needs; the decision, counters, epoch and expiry check add the rest ({own} over"
    " the latter)."
)

OBSTACLES: Final[dict[str, str]] = {
    "tcp-connect": _HOOKS
    + " A connection passes these hooks some ten times (create, connect, seven packets, release),"
    " and its tag is made and freed by the kernel's socket storage. Tried: a tag that fits a"
    " smaller size class of the allocator, one clock read a tick, the owner read from the task"
    " instead of the socket, one event a minute and process, maps outside any memory limit.",
    "tcp-connect/nftables": "nftables keeps nothing for each connection: its rules compare the"
    " owner of every packet, at {nft} over bare in this run. The agent keeps a tag with each"
    " socket, so that it can name the license of an open connection and end it. Programs that do"
    " nothing but keep such a tag are at {tag} over bare, those that do nothing at all at {floor}:"
    " as long as the former is above nftables, a cheaper decision alone cannot close the gap."
    " Connections that go on talking are cheaper under the agent: see the round trip.",
    "tcp-rtt": _HOOKS
    + " A round trip of one byte on loopback passes the two packet hooks four times, and has no"
    " network to hide them behind.",
    "udp-sendto": _HOOKS
    + " The operation is the cheapest that this kernel can do with a socket: one thread sends to"
    " itself over loopback and nothing sleeps. Where empty programs alone stand above the bar, no"
    " program can meet it here; what is left to save is the part beyond them.",
    "udp-send": _HOOKS
    + " The operation is the cheapest that this kernel can do with a socket: one thread sends to"
    " itself over loopback and nothing sleeps. Where empty programs alone stand above the bar, no"
    " program can meet it here; what is left to save is the part beyond them.",
    "no-resource": _HOOKS
    + " The programs cannot know that a packet concerns nobody before they have run: the hooks"
    " are per cgroup, not per destination.",
    "iperf3": "Bulk data passes the packet hooks once for each segment of up to 64 KiB, so little"
    " is left of their cost; see the interval, and the row of the probe's own bulk transfer, which"
    " is less noisy than iperf3.",
    "scale": "The tables are hashes and tries: what grows is the part of them that falls out of"
    " the CPU's caches, and the depth of the trie around the measured address (the filler networks"
    " stand there on purpose).",
    "revocation": "The packet hooks refuse the next packet once the license's epoch is written."
    " With no other traffic the daemon wrote it 3 to 4 ms after the request: 1 ms for the request,"
    " 1.5 ms for the durable record of the revocation (fsync), 0.5 ms for the licenses. Beside"
    " 1,000 busy sockets it also waits for a CPU at three changes of thread; that is taken to be"
    " the rest, as the figure follows the machine's load (above) and no consistent difference was"
    " seen between 1,000 and 100,000 bindings. Tried: no garbage collection over a large policy,"
    " which could stop the daemon for 0.2 s. Not covered by this row: a revocation that arrives"
    " during policy.apply waits for it.",
    "start-prebuilt": "Python's own start in the loader's process, then reading the kernel's BTF"
    " and verifying the programs, one object after another on one CPU: a loaded machine shows"
    " directly.",
    "start-bcc": "bcc takes 0.5 s to load and Clang compiles the core programs anew, on one CPU: a"
    " loaded machine shows directly. A restart that finds the same build attached compiles"
    " nothing.",
    "daemon-memory": "Python with cryptography and psutil takes about 25 MiB before the first"
    " binding; pages that a compilation of the policy used are given back only in part.",
    "daemon-cpu": "Each process that uses a license for the first time in a minute is an event;"
    " one costs some 20 us (a look at /proc, a record, a line in the log), and once a second the"
    " daemon walks the table of folded repeats, which such processes fill to 8,192 entries. Tried:"
    " an event loop that rests between two reads of the ring (92 % before), a cgroup's path looked"
    " up once, longer pauses when many events come.",
    "kernel-memory": "An element takes more than the formula says: a map's layout changed in this"
    " kernel, and the formula must follow.",
    "spawn": "The meter's programs run at each fork, exec, exit and release of a process: an"
    " account is made, its executable is read, and what the process used is added up. /bin/true"
    " itself is little more than the kernel's work on it, so this is the largest share they can"
    " have.",
    "sample": "Each process that used anything in an interval is a line of its own until the disk:"
    " its counters are read and put into a line by the kernel (2 us), which is read and removed"
    " again (1 us); it is named, charged to a license, kept for `top`, encoded, hashed and"
    " compressed (3 to 4 us together, without an object of its own)."
    " Processes that used nothing cost the kernel's look at them, and a line a minute for their"
    " memory. What is left to save is the kernel's share: a line could outlive its sheet, so that"
    " none is made and removed for each sample.",
    "churn-cpu": "What ends between two samples is added to one line for each executable, cgroup"
    " and user in the kernel, so births and deaths cost the daemon nothing by number. The rest is"
    " what lives: see the row of a sample, and the daemon's own look at network namespaces,"
    " which visits every process.",
    "churn-memory": "The table of `top` keeps ended processes for 60 s, and Python's allocator"
    " gives pages back only in part.",
    "beside-cpu": "The others read their files and forget what ended; nothing of it has to survive."
    " The agent names each owner, charges it to a license, signs it and waits for the disk, 1,000"
    " processes and their 1,000 connections at each interval; and its figure holds its duties"
    " besides metering (licenses, network namespaces, interfaces, events).",
    "beside-licload": "The reference is the kernel's CPU clock of each process, read when it has"
    " ended and before it is reaped. See the accuracy page for what the kernel accounts later.",
    "beside-wire": "The reference counts ARP as well, and the headers of what the other end sends"
    " after our socket is gone (a reset has no owner here).",
    "beside-brief": "The kernel's release of a process is where its last word is taken: what it did"
    " since the scheduler last brought its time up to date. Where a kernel runs no program at some"
    " releases, that is missed.",
    "usage-throughput": "Server, database and the agent's side share the machine's CPUs; the spread"
    " says what each of them takes for a record.",
}
