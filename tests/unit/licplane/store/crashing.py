# SPDX-License-Identifier: Apache-2.0
"""Programs that test_concurrency.py runs beside itself: `crashing.py WHAT URL [COUNT]`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import event

from licplane.store.audit import FIRST_HASH, audit_head_payload, entry_hash
from licplane.store.catalog_model import Kind, ObjectDraft, Scope
from licplane.store.database import Store, Transaction
from licplane.store.host_model import Host, HostStatus
from licplane.store.identity_model import JoinToken
from licplane.store.record_model import AuditDraft, AuditHead, LicenseIssue, LicenseRecord
from lictoken.sealed import Seal

NAMES = ("a", "b", "c")
TOKEN_USES = 1_000


def prepare(store: Store) -> None:
    """What `change` works on."""
    with store.transaction() as transaction:
        transaction.put_join_token(JoinToken("t", bytes(32), {}, TOKEN_USES, 2**62, "x", 1))


def change(transaction: Transaction) -> None:
    """Everything a transaction can hold; each run makes each thing one more."""
    step = transaction.next_revision()
    scope = Scope("acme", regions=(f"r{step}",))
    transaction.put_objects(
        [ObjectDraft(Kind.BINDING, name, scope, str(step).encode()) for name in NAMES]
    )
    number = transaction.take_number()
    issue = LicenseIssue("kid", "{}", f"token {step}")
    transaction.put_license(LicenseRecord(f"l{step}", number, 1, (issue,)))
    if not transaction.use_join_token("t", 1):
        raise AssertionError("the token has no use left")
    transaction.put_host(
        Host(f"h{step}", "h", HostStatus.ACTIVE, {"org": "acme"}, "", os.urandom(32), 1, 1)
    )
    record = transaction.append_audit(AuditDraft(1, "x", "admin", "y", f"l{step}"))
    payload = audit_head_payload(record.sequence, record.hash)
    transaction.put_audit_head(AuditHead(record.sequence, record.hash, Seal(payload, "k", b"s")))
    transaction.seal_catalog(Seal(str(step).encode(), "k", transaction.root_after()))
    transaction.put_setting("step", str(step).encode())


def steps_done(store: Store) -> int:
    """How often `change` was done. Raises AssertionError if any was done by halves."""
    with store.reading() as reader:
        head = reader.head()
        done = head.revision
        expected = str(done).encode() if done else None
        facts = {
            "setting": reader.setting("step") == expected,
            "seal": (head.seal.payload if head.seal else None) == expected,
            "sealed root": head.seal is None or head.seal.signature == reader.catalog_root(),
            "root": reader.catalog_root() == reader.compute_catalog_root(),
            "objects": [(one.name, one.payload) for one in reader.every_object()]
            == ([(name, expected) for name in NAMES] if done else []),
            "log": [row.revision for row in reader.changes_since(0) or ()]
            == [step for step in range(1, done + 1) for _ in range(3 if step == 1 else 6)],
            "numbers": sorted(one.number for one in reader.licenses()) == list(range(1, done + 1)),
            "tokens": all(one.issues for one in reader.licenses()),
            "uses": [one.uses for one in reader.join_tokens()] == [done],
            "fleet": head.fleet_revision == done == len(reader.hosts(labels={"org": "acme"})),
            "audit": [one.sequence for one in reader.audit()] == list(range(1, done + 1)),
            "heads": [one.sequence for one in reader.audit_heads()] == list(range(1, done + 1)),
        }
        before = FIRST_HASH
        for record in reader.audit():
            if record.previous_hash != before or entry_hash(record) != record.hash:
                facts[f"audit {record.sequence}"] = False
            before = record.hash
    wrong = [name for name, is_so in facts.items() if not is_so]
    if wrong:
        raise AssertionError(f"after step {done}: {wrong}")
    return done


def _in_child(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at_each_statement(url: str) -> None:
    """Do `change` in processes that kill themselves before their 1st, 2nd... statement."""

    def dying(at: int) -> None:
        count = 0

        def die(*unused: object) -> None:
            nonlocal count
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

        store = Store.open(url)
        event.listen(store._engine, "before_cursor_execute", die)
        event.listen(store._engine, "commit", die)
        with store.transaction() as transaction:
            change(transaction)

    at = 0
    while True:
        at += 1
        with Store.open(url) as store:
            before = steps_done(store)
        code = _in_child(lambda: dying(at))  # noqa: B023 -- it has ended before `at` changes
        with Store.open(url) as store:
            done = steps_done(store) - before
            if code == 0 and done == 1:
                break  # it has fewer statements than that: all of them were tried
            if code != -signal.SIGKILL or done:
                raise AssertionError(f"statement {at}: exit {code}, {done} done")
    _say(at - 1)


def _say(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def main() -> None:
    """Run one of the programs."""
    what, url, *rest = sys.argv[1:]
    count = int(rest[0]) if rest else 0
    if what == "killed":
        killed_at_each_statement(url)
        return
    _say("ready")
    sys.stdin.readline()  # all begin together
    with Store.in_folder(Path(url)) if what == "open" else Store.open(url) as store:
        for _ in range(count):
            with store.transaction() as transaction:
                if what == "change":
                    change(transaction)
                elif what in ("numbers", "open"):
                    _say(transaction.take_number())
                elif what == "token":
                    _say(int(transaction.use_join_token("t", 1)))


if __name__ == "__main__":
    main()
