# SPDX-License-Identifier: Apache-2.0
"""What stands in the way of a bar, in words; shown with a row that missed it.

Gaps are filled from the same run: {measured}, {bar}, and for traffic {floor} (empty programs on
the same hooks over bare), {tag} (the same with a socket's tag), {own} (the agent over those).
"""

from __future__ import annotations

from typing import Final

_HOOKS: Final = (
    "Of {measured}, {floor} is the kernel's own price for having any program on these hooks"
    " (programs of two instructions, same run), {tag} with the tag that ending an open"
    " connection needs; the decision, counters, epoch and expiry check add the rest ({own} over"
    " the latter)."
)

OBSTACLES: Final[dict[str, str]] = {
    "tcp-connect": _HOOKS
    + " A connection passes the cgroup hooks about ten times (create, connect, seven packets or"
    " so, release), and its tag is an allocation and a free of the kernel's socket storage, some"
    " 0.45 us of 20 us. Tried: a tag of 120 bytes instead of 160 (one size class of the allocator"
    " less), one clock read a tick, the owner read from the task instead of the socket, one event"
    " a minute and process.",
    "tcp-connect/nftables": "nftables keeps nothing for each connection: its rules compare the"
    " owner of every packet. The agent looks up the process, the rule and the license once and"
    " then keeps a tag with the socket, so that it can name the license of an open connection and"
    " end it; making and freeing that tag is some 0.45 us of 20 us, more than the difference"
    " ({measured}). On connections that live for a few round trips the agent is the cheaper one:"
    " see the row of the round trip.",
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
    "revocation": "The packet hooks refuse the next packet once the epoch is written; what takes"
    " time is to reach that write: a request over the local socket, the durable record of the"
    " revocation (fsync), and the daemon's turn on a busy CPU.",
    "start-prebuilt": "Reading BTF and verifying the programs, one object after another.",
    "start-bcc": "Clang compiles each object at every start, about 0.45 s each, after 0.5 s for"
    " loading bcc itself; nothing is kept between starts so that a kernel update never meets an"
    " old object.",
    "daemon-memory": "Python with cryptography and psutil takes about 25 MiB before the first"
    " binding; pages that a compilation of the policy used are given back only in part.",
    "daemon-cpu": "Each process that uses a license for the first time in a minute is an event,"
    " and an event costs the daemon a look at /proc and a line in its log.",
    "kernel-memory": "An element takes more than the formula says: a map's layout changed in this"
    " kernel, and the formula must follow.",
}
