# SPDX-License-Identifier: Apache-2.0
"""Network use: payload to the byte, packets as the wire carries them, each socket's once."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from tests.kernel.harness.accuracy import Accuracy, needed
from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.dial import binding
from tests.kernel.harness.line import CLIENT4, SERVER4, SERVER6, Line
from tests.kernel.harness.meter import Flow, MeterOf, Use, open_meter
from tests.kernel.harness.programs import PYTHON
from tests.kernel.harness.subjects import new_jti
from tests.kernel.harness.work import Worker, has

from licagent.kernel.bpffs import PinFolder

pytest_plugins = ["tests.kernel.harness.metered"]
pytestmark = pytest.mark.measured_again

TRAFFIC: Final = str(Path(__file__).parent / "harness" / "traffic.py")
TCP, UDP, ICMP, OTHER = 6, 17, 1, 255
SIZE: Final = 3_000_001
REPLY: Final = 100_003
FRAGMENTS: Final = 0.035
"""Of 1,500 bytes, 20 are the header of an IPv4 fragment, 48 those of an IPv6 fragment."""
REPEATED: Final = 0.05
"""Of what goes by MPTCP, at most: it repeats what a subflow is slow to deliver."""
CONTROL_BYTES: Final = 65536
"""What iperf3 says to its server besides: the test and its results, as JSON."""
NAMES: Final = {SERVER4: "IPv4", SERVER6: "IPv6"}


@dataclass(slots=True)
class Traffic:
    """A client's cgroup and a server's, at the two ends of the line."""

    metered: MeterOf
    worker: Worker
    line: Line
    client: Path
    server: Path

    def sides(self, use: Use, protocol: int) -> tuple[Flow, Flow]:
        """What client and server have used."""
        return use.flow(self.client, protocol=protocol), use.flow(self.server, protocol=protocol)

    def argv(self, at_client: bool, *command: object) -> tuple[str, ...]:
        """A command in its namespace."""
        where = self.line.client if at_client else self.line.server
        return self.line.inside(where) + tuple(str(word) for word in command)

    def talk(
        self,
        how: str = "sendall",
        read: str = "recv",
        *,
        host: str = SERVER4,
        size: int = SIZE,
        reply: int = REPLY,
        options: tuple[str, ...] = (),
        client: tuple[str, ...] = (),
    ) -> Use:
        """One TCP connection: `size` bytes there, `reply` back. `client`: another client."""
        sink = self.argv(False, *PYTHON, TRAFFIC, "tcp-sink", host, reply, read, *options)
        with self.metered.measuring() as use, self.worker.started(self.server, *sink) as server:
            port = server.line()
            words = client or (*PYTHON, TRAFFIC, "tcp-send")
            ran = self.worker.run(
                self.client, *self.argv(True, *words, host, port, size, how, *options)
            )
            if ran.status == 77:
                pytest.skip(f"the kernel lacks io_uring's {how}")
            assert (ran.status, ran.out) == (0, f"{reply}\n"), ran
            assert server.finish().out == f"{size}\n"
        return use

    def datagrams(self, count: int, size: int, how: str, host: str = SERVER4) -> tuple[Use, int]:
        """UDP one way; what arrived, by the receiver's own count."""
        sink = self.argv(False, *PYTHON, TRAFFIC, "udp-sink", host)
        with self.metered.measuring() as use, self.worker.started(self.server, *sink) as server:
            port = server.line()
            send = (*PYTHON, TRAFFIC, "udp-send", host, port, count, size, how)
            ran = self.worker.run(self.client, *self.argv(True, *send))
            assert ran.status == 0, ran
            _, received = server.finish().out.split()
            needed(received == ran.out.strip(), "the line lost something")
        return use, int(received)


@pytest.fixture(scope="module")
def line() -> Iterator[Line]:
    with Line() as made:
        yield made


@pytest.fixture
def traffic(metered: MeterOf, worker: Worker, line: Line, place: Path) -> Traffic:
    line.lose(0)
    line.offload(on=True)
    client, server = place / "client", place / "server"
    client.mkdir()
    server.mkdir()
    return Traffic(metered, worker, line, client, server)


@pytest.fixture(scope="module")
def uring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("uring") / "uring"
    source = Path(__file__).parent / "harness" / "uring.c"
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-static", "-o", made, source], check=True)
    return made


def check_payload(  # noqa: PLR0917 - the same four figures for every way of talking
    accuracy: Accuracy,
    what: str,
    traffic: Traffic,
    use: Use,
    size: int = SIZE,
    reply: int = REPLY,
) -> None:
    """Both ends and both directions, to the byte."""
    client, server = traffic.sides(use, TCP)
    for name, measured, expected in (
        ("sent", client.tx_payload_bytes, size),
        ("received by the server", server.rx_payload_bytes, size),
        ("sent back", server.tx_payload_bytes, reply),
        ("received by the client", client.rx_payload_bytes, reply),
    ):
        accuracy.check(f"{what}: payload {name}", "the programs", measured, expected, "bytes")


@pytest.mark.parametrize("host", [SERVER4, SERVER6], ids=NAMES.get)
@pytest.mark.parametrize("offload", [True, False], ids=["GSO and GRO on", "GSO and GRO off"])
def test_wire_and_payload(host: str, offload: bool, traffic: Traffic, accuracy: Accuracy) -> None:
    """Bytes on the wire are those of the router's interfaces, each segment with its headers."""
    line = traffic.line
    line.offload(on=offload)
    arrived, returned = line.arrived(), line.returned()
    counted = line.nft_counter("up_tcp")
    use = traffic.talk(host=host, size=10 * SIZE)
    arrived, returned = line.arrived() - arrived, line.returned() - returned
    counted = line.nft_counter("up_tcp") - counted

    what = f"TCP over {NAMES[host]}, GSO and GRO {'on' if offload else 'off'}"
    check_payload(accuracy, what, traffic, use, 10 * SIZE)
    client, server = traffic.sides(use, TCP)
    # The last acknowledgement of a closed connection is sent by the kernel for no socket.
    slack = 400
    for name, measured, expected in (
        ("sent", client.tx_wire_bytes, arrived.bytes),
        ("received by the server", server.rx_wire_bytes, arrived.bytes),
        ("sent back", server.tx_wire_bytes, returned.bytes),
        ("received by the client", client.rx_wire_bytes, returned.bytes),
    ):
        accuracy.check(
            f"{what}: wire bytes {name}",
            "interface counters",
            measured,
            expected,
            "bytes",
            0.001,
            slack=slack,
        )
    for name, measured, expected in (
        ("sent", client.tx_packets, arrived.packets),
        ("received by the server", server.rx_packets, arrived.packets),
    ):
        accuracy.check(
            f"{what}: packets {name}",
            "interface counters",
            measured,
            expected,
            "packets",
            0.001,
            slack=5,
        )
    if not offload:
        accuracy.check(
            f"{what}: wire bytes sent",
            "nftables counter",
            client.tx_wire_bytes,
            counted.bytes,
            "bytes",
            0.001,
            slack=slack,
        )
    assert use.flow(traffic.client.parent, loopback=True) == Flow(), "it did not go by loopback"


def test_loss_leaves_the_payload_and_grows_the_wire(traffic: Traffic, accuracy: Accuracy) -> None:
    line = traffic.line
    line.offload(on=False)  # each packet is lost by itself
    line.lose(25)
    sent, arrived = line.sent(), line.arrived()
    counted = line.nft_counter("up_tcp")
    try:
        use = traffic.talk()
    finally:
        line.lose(0)
    sent, arrived = line.sent() - sent, line.arrived() - arrived
    counted = line.nft_counter("up_tcp") - counted

    assert sent.packets > arrived.packets * 1.02, "nothing was lost"
    check_payload(accuracy, "TCP, 1 of 25 packets lost", traffic, use)
    client, server = traffic.sides(use, TCP)
    what = "TCP, 1 of 25 packets lost: wire bytes"
    accuracy.check(
        f"{what} sent",
        "interface counters",
        client.tx_wire_bytes,
        sent.bytes,
        "bytes",
        0.002,
        slack=400,
    )
    accuracy.check(
        f"{what} sent",
        "nftables counter",
        client.tx_wire_bytes,
        counted.bytes,
        "bytes",
        0.002,
        slack=400,
    )
    accuracy.check(
        f"{what} that arrived",
        "interface counters",
        server.rx_wire_bytes,
        arrived.bytes,
        "bytes",
        0.002,
        slack=400,
    )
    assert client.tx_wire_bytes > SIZE * (1 + 52 / 1448) * 1.02, "the wire did not grow"


@pytest.mark.parametrize("how", ["eagain", "sendfile", "splice", "zerocopy", "sendmsg"])
def test_ways_of_sending(how: str, traffic: Traffic, accuracy: Accuracy) -> None:
    read = "late" if how == "eagain" else "recv"
    check_payload(accuracy, f"TCP, {how}", traffic, traffic.talk(how, read))


@pytest.mark.parametrize("how", ["peek", "splice", "recvmsg", "late"])
def test_ways_of_reading(how: str, traffic: Traffic, accuracy: Accuracy) -> None:
    check_payload(accuracy, f"TCP, reading by {how}", traffic, traffic.talk(read=how))


@pytest.mark.parametrize("how", ["plain", "polled", "zerocopy"])
def test_io_uring(how: str, traffic: Traffic, accuracy: Accuracy, uring: Path) -> None:
    use = traffic.talk(how, client=(str(uring),))
    check_payload(accuracy, f"TCP, io_uring, {how}", traffic, use)


def test_mptcp(traffic: Traffic, accuracy: Accuracy) -> None:
    """Payload is that of the subflows: what MPTCP says again on another one is in it twice."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).close()
    except OSError as error:
        pytest.skip(f"the kernel lacks MPTCP: {error}")
    for where in (traffic.line.client, traffic.line.server):
        where.sysctl("mptcp/enabled", "1")
    use = traffic.talk(options=("--mptcp",))
    client, server = traffic.sides(use, TCP)
    for name, measured, expected in (
        ("sent", client.tx_payload_bytes, SIZE),
        ("received by the server", server.rx_payload_bytes, SIZE),
        ("sent back", server.tx_payload_bytes, REPLY),
        ("received by the client", client.rx_payload_bytes, REPLY),
    ):
        assert measured >= expected, name
        accuracy.check(
            f"MPTCP: payload {name}", "the programs", measured, expected, "bytes", REPEATED
        )


def test_a_long_connection_in_many_sheets(traffic: Traffic, accuracy: Accuracy) -> None:
    """What is open is counted as it goes; the parts are the whole."""
    sink = traffic.argv(False, *PYTHON, TRAFFIC, "tcp-sink", SERVER4, REPLY, "peek")
    size, parts = 5 * SIZE, 5
    metered, worker = traffic.metered, traffic.worker
    sheets = 0
    with metered.measuring() as use, worker.started(traffic.server, *sink) as server:
        send = (*PYTHON, TRAFFIC, "tcp-parts", SERVER4, server.line(), size, parts)
        with worker.started(traffic.client, *traffic.argv(True, *send)) as client:
            assert client.process.stdin is not None
            for _ in range(parts):
                assert client.line() == "sent"
                sheet = metered.cut()
                sheets += any(row.tx_payload_bytes > REPLY for row in sheet.flows)
                use.add(sheet)
                client.process.stdin.write("\n")
                client.process.stdin.flush()
            assert client.finish().out == f"{REPLY}\n"
        assert server.finish().out == f"{size}\n"

    assert sheets > 1, "nothing was counted while it was open"
    check_payload(accuracy, "TCP in many sheets", traffic, use, size)


UDP_CASES: Final = {
    "sendto": (2000, 700, SERVER4),
    "sendto of nothing": (100, 0, SERVER4),
    "connected": (2000, 1400, SERVER6),
    "segments": (2000, 1200, SERVER4),
    "zerocopy": (500, 1400, SERVER4),
    "corked": (500, 1000, SERVER4),
}


@pytest.mark.parametrize("case", UDP_CASES)
def test_udp(case: str, traffic: Traffic, accuracy: Accuracy) -> None:
    count, size, host = UDP_CASES[case]
    line = traffic.line
    before = line.arrived()
    use, received = traffic.datagrams(count, size, case.split(" ", 1)[0], host)
    arrived = line.arrived() - before

    client, server = traffic.sides(use, UDP)
    what = f"UDP over {NAMES[host]}, {case}"
    for name, measured in (
        ("sent", client.tx_payload_bytes),
        ("received", server.rx_payload_bytes),
    ):
        accuracy.check(f"{what}: payload {name}", "the programs", measured, received, "bytes")
    for name, measured in (("sent", client.tx_wire_bytes), ("received", server.rx_wire_bytes)):
        accuracy.check(
            f"{what}: wire bytes {name}", "interface counters", measured, arrived.bytes, "bytes"
        )
    for name, measured in (("sent", client.tx_packets), ("received", server.rx_packets)):
        accuracy.check(
            f"{what}: packets {name}", "interface counters", measured, arrived.packets, "packets"
        )
    assert (client.rx_payload_bytes, server.tx_payload_bytes) == (0, 0)


@pytest.mark.parametrize("host", [SERVER4, SERVER6], ids=NAMES.get)
def test_udp_fragments(host: str, traffic: Traffic, accuracy: Accuracy) -> None:
    """A datagram is seen whole, before and after it is in pieces: their own headers are not."""
    before = traffic.line.arrived()
    use, received = traffic.datagrams(300, 8000, "connected", host)
    arrived = traffic.line.arrived() - before

    client, server = traffic.sides(use, UDP)
    what = f"UDP over {NAMES[host]}, 8,000 bytes in fragments"
    assert arrived.packets == 300 * 6
    accuracy.check(
        f"{what}: payload sent", "the programs", client.tx_payload_bytes, received, "bytes"
    )
    accuracy.check(
        f"{what}: payload received", "the programs", server.rx_payload_bytes, received, "bytes"
    )
    accuracy.check(
        f"{what}: wire bytes sent",
        "interface counters",
        client.tx_wire_bytes,
        arrived.bytes,
        "bytes",
        FRAGMENTS,
    )
    accuracy.check(
        f"{what}: wire bytes received",
        "interface counters",
        server.rx_wire_bytes,
        arrived.bytes,
        "bytes",
        FRAGMENTS,
    )


def test_a_socket_that_is_passed_on(traffic: Traffic, accuracy: Accuracy, tmp_path: Path) -> None:
    """Made and used by one process, given to another, used on: each byte once."""
    metered, worker, line = traffic.metered, traffic.worker, traffic.line
    way = str(tmp_path / "way")
    taker_cgroup = traffic.client.parent / "taker"
    taker_cgroup.mkdir()
    sink = traffic.argv(False, *PYTHON, TRAFFIC, "tcp-sink", SERVER4, REPLY, "recv")
    take = (*line.inside(line.client), *PYTHON, TRAFFIC, "take", way, 2 * SIZE)
    with (
        metered.measuring() as use,
        worker.started(traffic.server, *sink) as server,
        worker.started(taker_cgroup, *take) as taker,
    ):
        port = server.line()
        assert taker.line() == "ready"
        give = (*PYTHON, TRAFFIC, "give", SERVER4, port, SIZE, way)
        assert worker.run(traffic.client, *traffic.argv(True, *give)).status == 0
        assert taker.finish().out == f"{REPLY}\n"
        assert server.finish().out == f"{3 * SIZE}\n"
    given, taken = use.flow(traffic.client, protocol=TCP), use.flow(taker_cgroup, protocol=TCP)
    accuracy.check(
        "TCP socket passed on: payload sent by both",
        "the programs",
        given.tx_payload_bytes + taken.tx_payload_bytes,
        3 * SIZE,
        "bytes",
    )
    accuracy.check(
        "TCP socket passed on: payload received by both",
        "the programs",
        given.rx_payload_bytes + taken.rx_payload_bytes,
        REPLY,
        "bytes",
    )
    # A socket is its maker's, as its tag is: by the maker's license it was connected.
    assert given.tx_payload_bytes == 3 * SIZE


def test_loopback_is_told_apart(traffic: Traffic, accuracy: Accuracy) -> None:
    line, worker = traffic.line, traffic.worker
    sink = traffic.argv(True, *PYTHON, TRAFFIC, "tcp-sink", "127.0.0.1", REPLY, "recv")
    with traffic.metered.measuring() as use, worker.started(traffic.server, *sink) as server:
        send = (*PYTHON, TRAFFIC, "tcp-send", "127.0.0.1", server.line(), SIZE, "sendall")
        assert worker.run(traffic.client, *line.inside(line.client), *send).status == 0
        server.finish()
    check_payload(accuracy, "TCP over loopback", traffic, use)
    assert use.flow(traffic.client.parent, loopback=False) == Flow()


@pytest.mark.parametrize("direction", ["up", "down"])
def test_iperf3(direction: str, traffic: Traffic, accuracy: Accuracy) -> None:
    """iperf3's own figures; its control connection is TCP, too, and is in ours."""
    assert has("iperf3"), "iperf3 is not installed: ./dev setup"
    command = ("iperf3", "-J", "-c", SERVER4, "-n", "60M", "-P", "2")
    command += ("-R",) if direction == "down" else ()
    use, report = run_iperf3(traffic, command)
    sent = report["end"]["sum_sent"]["bytes"]
    received = report["end"]["sum_received"]["bytes"]
    client, server = traffic.sides(use, TCP)
    if direction == "down":
        client, server = server, client
    # It closes before all that it sent is acknowledged and all that came is read: what TCP
    # delivered lies between what one side says that it sent and the other that it read.
    for name, measured in (
        ("sent", client.tx_payload_bytes),
        ("received", server.rx_payload_bytes),
    ):
        accuracy.check(
            f"iperf3 {direction}: payload {name}",
            "iperf3 -J, between sent and received",
            measured,
            sorted((received, measured, sent))[1],
            "bytes",
            0.001,
            slack=CONTROL_BYTES,
        )


def test_iperf3_udp(traffic: Traffic, accuracy: Accuracy) -> None:
    command = ("iperf3", "-J", "-c", SERVER4, "-u", "-b", "100M", "-l", "1200", "-n", "5M")
    use, report = run_iperf3(traffic, command)
    client, _ = traffic.sides(use, UDP)
    accuracy.check(
        "iperf3 UDP: payload sent",
        "iperf3 -J",
        client.tx_payload_bytes,
        report["end"]["sum"]["bytes"],
        "bytes",
        0.001,
        slack=1200,
    )


def run_iperf3(traffic: Traffic, command: tuple[str, ...]) -> tuple[Use, dict[str, dict]]:  # type: ignore[type-arg]
    metered, worker = traffic.metered, traffic.worker
    listen = traffic.argv(False, "iperf3", "-s", "-1", "--forceflush")
    with metered.measuring() as use, worker.started(traffic.server, *listen) as server:
        while "listening" not in server.line():
            pass
        ran = worker.run(traffic.client, *traffic.argv(True, *command))
        report = json.loads(ran.out)
        assert ran.status == 0, report.get("error")
        server.finish()
    return use, report


def test_other_protocols(traffic: Traffic, accuracy: Accuracy) -> None:
    """ICMP by ping(8), and a protocol without a name by a raw socket."""
    traffic.line.client.sysctl("ipv4/ping_group_range", "0 2147483647")
    with traffic.metered.measuring() as use:
        ping = ("ping", "-q", "-c", "5", "-i", "0.01", "-s", "1000", SERVER4)
        ran = traffic.worker.run(traffic.client, *traffic.argv(True, *ping))
        assert ran.status == 0, ran
        raw = (*PYTHON, TRAFFIC, "raw-send", SERVER4, 10, 500)
        assert traffic.worker.run(traffic.client, *traffic.argv(True, *raw)).status == 0
    pings = use.flow(traffic.client, protocol=ICMP)
    others = use.flow(traffic.client, protocol=OTHER)
    accuracy.check("ping: wire bytes sent", "ping's sizes", pings.tx_wire_bytes, 5 * 1028, "bytes")
    accuracy.check(
        "ping: wire bytes received", "ping's sizes", pings.rx_wire_bytes, 5 * 1028, "bytes"
    )
    accuracy.check(
        "raw socket: wire bytes sent",
        "the program's sizes",
        others.tx_wire_bytes,
        10 * 520,
        "bytes",
    )
    assert others.tx_packets == 10


def test_a_sender_that_is_killed(traffic: Traffic, accuracy: Accuracy) -> None:
    """What had left it is sent to the end by the kernel, and counted to the end."""
    metered, worker = traffic.metered, traffic.worker
    sink = traffic.argv(False, *PYTHON, TRAFFIC, "tcp-sink", SERVER4, 0, "told")
    with metered.measuring() as use, worker.started(traffic.server, *sink) as server:
        send = (*PYTHON, TRAFFIC, "tcp-send", SERVER4, server.line(), 100 * SIZE, "sendall")
        with worker.started(traffic.client, *traffic.argv(True, *send)) as client:
            while not use.flow(traffic.client).tx_payload_bytes:
                use.add(metered.cut())
            (traffic.client / "cgroup.kill").write_text("1")
            client.process.wait(60)
        received = int(server.finish().out)
    client_flow, server_flow = traffic.sides(use, TCP)
    assert 0 < received < 100 * SIZE
    accuracy.check(
        "TCP sender killed: payload sent",
        "the receiver",
        client_flow.tx_payload_bytes,
        received,
        "bytes",
    )
    accuracy.check(
        "TCP sender killed: payload received",
        "the receiver",
        server_flow.rx_payload_bytes,
        received,
        "bytes",
    )


def test_data_in_the_first_packet(traffic: Traffic, accuracy: Accuracy) -> None:
    """TCP Fast Open: the SYN itself carries payload, and is no byte of it."""
    for where in (traffic.line.client, traffic.line.server):
        where.sysctl("ipv4/tcp_fastopen", str(0x207))  # both sides, with no cookie
    try:
        check_payload(accuracy, "TCP Fast Open", traffic, traffic.talk("fastopen"))
    finally:
        for where in (traffic.line.client, traffic.line.server):
            where.sysctl("ipv4/tcp_fastopen", "1")


def test_many_short_connections(traffic: Traffic, accuracy: Accuracy) -> None:
    """The SYN and the FIN are numbered like bytes, in each connection again: none is counted."""
    metered, worker = traffic.metered, traffic.worker
    count, size, reply = 300, 17, 5
    sink = traffic.argv(False, *PYTHON, TRAFFIC, "tcp-short", SERVER4, count, reply)
    with metered.measuring() as use, worker.started(traffic.server, *sink) as server:
        send = (*PYTHON, TRAFFIC, "tcp-shorts", SERVER4, server.line(), count, size)
        ran = worker.run(traffic.client, *traffic.argv(True, *send))
        assert (ran.status, ran.out) == (0, f"{count * reply}\n"), ran
        assert server.finish().out == f"{count * size}\n"
    check_payload(
        accuracy, "300 TCP connections of 17 bytes", traffic, use, count * size, count * reply
    )


def test_license_and_resource_of_what_is_used(
    make_agent: Callable[..., AgentUnderTest], worker: Worker, line: Line, accuracy: Accuracy
) -> None:
    """A licensed destination's bytes are that license's and resource's; the others are nobody's."""
    agent = make_agent(settings='metering = "off"')
    agent.start()
    licensed, free = agent.cgroup / "licensed", agent.cgroup / "server"
    licensed.mkdir()
    free.mkdir()
    jti = new_jti()
    agent.issue(jti, ["r"])
    agent.policy(
        '[[resource]]\nname = "r"\nkind = "network"\n'
        f'destinations = [{{ cidr = "{SERVER4}/32" }}]\n' + binding(jti, "cgroup:path:/licensed")
    )
    meter = open_meter(agent.bpffs)
    try:
        meter.begin()
        traffic = Traffic(
            MeterOf(PinFolder(agent.bpffs), agent.cgroup, meter), worker, line, licensed, free
        )
        use = traffic.talk()
        other = traffic.talk(host=SERVER6)
    finally:
        meter.close()

    rows = use.flows_of(licensed)
    assert {row.license for row in rows} == {agent._numbered[jti]}, rows
    assert len({row.resource for row in rows}) == 1
    assert all(row.license == 0 for row in use.flows_of(free) + other.flows_of(licensed))
    assert {row.resource for row in other.flows_of(licensed)} != {row.resource for row in rows}
    check_payload(accuracy, "TCP to a licensed resource", traffic, use)
    check_payload(accuracy, "TCP to no resource", traffic, other)


@pytest.mark.parametrize("side", ["reader", "writer"])
def test_a_connection_that_is_reset(side: str, traffic: Traffic, accuracy: Accuracy) -> None:
    """Closed with unread data, TCP ends by a reset: what was moved until then, once."""
    metered, worker = traffic.metered, traffic.worker
    take = REPLY if side == "reader" else 10 * SIZE
    sink = traffic.argv(False, *PYTHON, TRAFFIC, "tcp-early", SERVER4, take, REPLY)
    with metered.measuring() as use, worker.started(traffic.server, *sink) as server:
        port = server.line()
        send = (*PYTHON, TRAFFIC, "tcp-cut", SERVER4, port, 10 * SIZE, side)
        ran = worker.run(traffic.client, *traffic.argv(True, *send))
        assert ran.status == 0, ran
        taken = int(server.finish().out)
    client, server_flow = traffic.sides(use, TCP)
    # What came and was not read is counted, too: up to a receive buffer, which has no reference.
    assert taken <= server_flow.rx_payload_bytes <= 10 * SIZE
    assert server_flow.rx_payload_bytes <= server_flow.rx_wire_bytes
    assert client.tx_payload_bytes <= server_flow.rx_payload_bytes, "more than came"
    accuracy.check(
        f"TCP reset by its {side}: payload sent back",
        "the programs",
        server_flow.tx_payload_bytes,
        REPLY,
        "bytes",
    )


def test_the_client_is_at_its_address(line: Line) -> None:
    """The line is what the tests believe it to be."""
    ping = ["ping", "-q", "-c", "1", "-W", "5", "-I", CLIENT4, SERVER4]
    done = line.client.run(lambda: subprocess.run(ping, capture_output=True, check=False))
    assert done.returncode == 0, done.stdout
