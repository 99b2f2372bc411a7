# SPDX-License-Identifier: Apache-2.0
"""Bills of a real server: usage that a host signed, a webhook that is told once, a correction."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from tests.bench.usage_throughput import enrolled
from tests.support.usage import Spool, record
from tests.system.harness.controlplane import ControlPlane, Document, license

from licplane.api.usage_reading import RecordReader
from licplane.service.billing.periods import Period, period_at
from licplane.service.usage.values import Position, SentBatch, UsageHello

if TYPE_CHECKING:
    pass

pytest_plugins = ["tests.support.postgres"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HOUR_NS = 3_600 * 10**9
SECRET = "a secret of the test"


class Webhook:
    """A receiver that fails at first, checks signatures, and keeps ids."""

    def __init__(self) -> None:
        self.events: dict[str, dict[str, Any]] = {}
        self.calls = 0
        self.false = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.calls += 1
                identity = self.headers["webhook-id"]
                words = f"{identity}.{self.headers['webhook-timestamp']}.".encode() + body
                digest = hmac.new(SECRET.encode(), words, hashlib.sha256).digest()
                if self.headers["webhook-signature"] != f"v1,{base64.b64encode(digest).decode()}":
                    outer.false += 1
                if outer.calls > 1:
                    outer.events[identity] = json.loads(body)
                self.send_response(503 if outer.calls == 1 else 204)
                self.end_headers()

            def log_message(self, *unused: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    made = Webhook()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.fixture(params=["sqlite", "postgresql"])
def plane(request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    """A server that runs."""
    database = ""
    if request.param == "postgresql":
        database = request.getfixturevalue("postgres_url")
    with ControlPlane(database=database) as made:
        made.make_keys()
        made.start()
        yield made


def send(plane: ControlPlane, spool: Spool, *records: bytes) -> None:
    """What the stream of usage does with a batch, in this process."""
    with plane.opened() as service:
        intake = service.usage_intake
        hello = UsageHello(spool.epoch, spool.public_key, spool.boot_id, 1, 1)
        chain = intake.open(spool.host_id, hello)
        item = spool.commit(list(records))
        batch = SentBatch(
            item.epoch, item.boot_id, item.first, list(item.records), item.previous_hash,
            item.hash, item.signature,
        )  # fmt: skip
        at = Position(chain.acked_sequence, chain.acked_hash)
        read = RecordReader().read(batch.first, batch.records)
        intake.store(chain, at, batch, intake.check(chain, at, batch), read)


def used(end_ms: int, hours: int) -> bytes:
    start_ms = end_ms - 5_000
    return record(1, start_unix_ms=start_ms, end_unix_ms=end_ms, cpu_ns=hours * HOUR_NS)


def wait(question: Callable[[], bool], plane: ControlPlane) -> None:
    """The dead server's lead ends after 20 s, and failed calls are repeated after 5 s and more."""
    limit = time.monotonic() + 120
    while not question():
        assert time.monotonic() < limit, plane.log()
        time.sleep(0.1)


def documents(webhook: Webhook) -> str:
    return f"""
[[plan]]
name = "standard"
currency = "EUR"
account = "organization"
[[plan.item]]
name = "cpu"
meters = ["cpu_ns"]
unit = "core-hour"
included = 10
tier = [{{up_to = 90, price = "0.10"}}, {{price = "0.05"}}]
[[trigger]]
name = "cpu"
meters = ["cpu_ns"]
unit = "core-hour"
thresholds = [50, 100]
by = "license"
notify = [{{webhook = "{webhook.url}", secret = "{SECRET}"}}]
[[budget]]
name = "year"
meters = ["cpu_ns"]
unit = "core-hour"
amount = 1000
"""


def month_in(seconds: int) -> Period:
    return period_at("month", time.time_ns() // 10**6 + seconds * 1000)


def test_from_a_signed_record_to_a_corrected_bill(plane: ControlPlane, webhook: Webhook) -> None:
    # The month that usage is of must be the one in which it is asked for.
    while (this := month_in(0)) != month_in(180):
        time.sleep(1)
    last = period_at("month", this.start_ms - 1)
    file = plane.folder / "billing.toml"
    file.write_text(documents(webhook))
    plane.do("price", "apply", file)

    table = {"name": "db", "kind": "network", "mode": "enforce"}
    where = {"cidr": "127.0.0.1/32", "ports": ["5432"], "protocol": "tcp"}
    plane.apply(Document("resource", {**table, "destinations": [where]}), license())
    spool = Spool(host_id=enrolled(plane).host_id)
    noon = last.start_ms + 43_200_000
    send(plane, spool, used(noon, 60), used(noon + 5_000, 50), used(this.start_ms + 1, 120))

    # The running server adds up, and tells both months' thresholds, each once, though it is
    # killed in between.
    wait(lambda: webhook.calls >= 1, plane)
    plane.kill()
    plane.start()
    wait(lambda: len(webhook.events) == 4, plane)
    assert webhook.false == 0
    told = sorted(
        (one["data"]["period"], one["data"]["threshold"]) for one in webhook.events.values()
    )
    assert told == [(one.label, level) for one in (last, this) for level in ("100", "50")]

    # Bills: 110 core-hours, of which 10 are free.
    plane.do("billing", "close", "standard", "--period", last.label)
    bill = plane.ask("billing", "show", "standard", "--period", last.label)["bill"]
    assert (bill["state"], bill["total"]) == ("closed", "9.50")
    send(plane, spool, used(noon + 9_000, 20))
    plane.do("billing", "correct", f"standard/{last.label}")
    bill = plane.ask("billing", "show", "standard", "--period", last.label)["bill"]
    assert [(one["kind"], one["amount"]) for one in bill["entries"]] == [
        ("charge", "9.50"), ("correction", "1.00"),
    ]  # fmt: skip

    # Over the network, with the right to read only, the same answers.
    plane.do("admin", "create", "eve", "--role", "auditor", "--out", plane.folder / "eve.pem")
    there = ("--server", plane.control, "--identity", plane.folder / "eve.pem")
    for command in (
        ("usage", "--by", "organization", "--by", "process", "--since", "2020-01-01"),
        ("billing", "show", "standard", "--period", last.label),
        ("usage", "--explain", str(bill["entries"][1]["entry"]), "--records"),
        ("trigger", "list"),
        ("trigger", "deliveries"),
        ("usage", "retention"),
    ):
        assert plane.ask(*command, *there) == plane.ask(*command), command
    found = plane.ask("usage", "--explain", str(bill["entries"][1]["entry"]), "--records", *there)
    assert found["adds_up"]
    assert [one["sequence"] for one in found["records"]] == [4]
    denied = plane.cli("billing", "close", "standard", "--period", last.label, *there)
    assert denied.status == 5
    total = plane.ask("usage", "--since", "2020-01-01", *there)["totals"]["cpu_ns"]
    assert total == 250 * HOUR_NS
    events = plane.do("export", "cloudevents", "--since", "2020-01-01", *there).splitlines()
    assert len({json.loads(line)["id"] for line in events}) == 4
    assert "<h1>Compliance report</h1>" in plane.do("report", "--since", "2020-01-01", *there)
    assert plane.ask("budget", "status", *there)["budgets"][0]["used"] == "120.000000"

    # What hosts signed is what was billed; and not, once somebody changed a row.
    check = plane.ask("usage", "verify", *there)
    assert (check["intact"], check["records"], check["entries"]) == (True, 4, 2)
    from sqlalchemy import text

    with plane.opened() as service, service.store.recording() as recorder:
        recorder._connection.execute(text("UPDATE usage_records SET cpu_ns = 1 WHERE sequence=4"))
    broken = plane.cli("usage", "verify", *there)
    assert broken.status == 7
    assert "record 4: its row has another cpu_ns" in broken.out
