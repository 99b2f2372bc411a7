# SPDX-License-Identifier: Apache-2.0
"""Network namespaces that exist only as descriptors: nothing to clean up but the descriptor."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from tests.kernel.routes import addresses

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET: Final = 0x40000000
_Value = TypeVar("_Value")


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _in_thread(action: Callable[[], _Value]) -> _Value:
    """Run in a thread of its own: a namespace is changed for one thread and ends with it."""
    values: list[_Value] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            values.append(action())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return values[0]


class Netns:
    """A network namespace, held by a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._inhabitant: subprocess.Popen[bytes] | None = None

    def inhabit(self) -> Self:
        """Let a process live in it as long as it is held: an agent finds it by that."""
        self._inhabitant = self.run(lambda: subprocess.Popen(["sleep", "infinity"]))
        return self

    @classmethod
    def new(cls) -> Self:
        """A new namespace with loopback up."""

        def make() -> int:
            _checked(_LIBC.unshare(_CLONE_NEWNET), "unshare(CLONE_NEWNET)")
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY)

        return cls(_in_thread(make))

    @classmethod
    def of(cls, pid: int) -> Self:
        """The namespace that a process is in."""
        return cls(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._inhabitant is not None:
            self._inhabitant.kill()
            self._inhabitant.wait()
        os.close(self.descriptor)

    def run(self, action: Callable[[], _Value]) -> _Value:
        """Run something inside; sockets it makes and programs it starts belong there."""

        def work() -> _Value:
            _checked(_LIBC.setns(self.descriptor, _CLONE_NEWNET), "setns")
            return action()

        return _in_thread(work)

    def ip(self, *arguments: str) -> None:
        """ip(8) inside."""
        self.run(lambda: subprocess.run(["ip", *arguments], check=True))

    def sysctl(self, name: str, value: str) -> None:
        """Set net.NAME inside, NAME with slashes."""
        self.run(lambda: Path("/proc/sys/net", name).write_text(value))


def fresh() -> Netns:
    """A namespace for routes on loopback that need sysctls the machine does not have."""
    made = Netns.new()
    # 1 client, 2 server, 4 and 0x200: data in the first SYN without a cookie (ip-sysctl.rst)
    made.sysctl("ipv4/tcp_fastopen", str(0x207))
    made.sysctl("ipv4/ping_group_range", "0 2147483647")
    made.sysctl("ipv4/conf/all/rp_filter", "0")
    made.sysctl("ipv4/conf/lo/rp_filter", "0")
    made.sysctl("ipv4/conf/default/rp_filter", "0")
    made.ip("address", "add", f"{addresses.FRESH4}/32", "dev", "lo")
    return made


def veth_pair() -> tuple[Netns, Netns]:
    """The client's and the server's namespace, joined by a veth pair."""
    client, server = Netns.new(), Netns.new()
    peer = f"/proc/{os.getpid()}/fd/{server.descriptor}"
    client.ip(
        *("link", "add", addresses.CLIENT_LINK, "address", addresses.CLIENT_MAC),
        *("type", "veth", "peer", "name", addresses.SERVER_LINK),
        *("address", addresses.SERVER_MAC, "netns", peer),
    )
    ends = (
        (client, addresses.CLIENT_LINK, addresses.CLIENT4, addresses.CLIENT6),
        (server, addresses.SERVER_LINK, addresses.SERVER4, addresses.SERVER6),
    )
    for namespace, link, four, six in ends:
        namespace.ip("address", "add", f"{four}/24", "dev", link)
        namespace.ip("address", "add", f"{six}/64", "dev", link, "nodad")
        namespace.ip("link", "set", link, "up")
    return client, server
