# SPDX-License-Identifier: Apache-2.0
"""The audit log: chain, seals, and what tampering of each kind looks like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from licplane.store.audit import (
    FIRST_HASH,
    audit_head_payload,
    chained,
    entry_hash,
    verify_log,
)
from licplane.store.database import Store
from licplane.store.record_model import AuditDraft, AuditHead, AuditRecord
from lictoken.keys import SigningKey
from lictoken.sealed import Seal, SealPurpose, seal, unseal
from lictoken.trust import TrustedKey, TrustStore

pytest_plugins = ["tests.support.postgres"]

KEY = SigningKey.create("acme")
TRUST = TrustStore([TrustedKey.of(KEY.public_key, "acme")])


def draft(target: str) -> AuditDraft:
    return AuditDraft(
        1_000, "local:root", "admin", "license.revoke", target, "lost", "r1", '{"a":1}'
    )


def head_of(record: AuditRecord, key: SigningKey = KEY) -> AuditHead:
    payload = audit_head_payload(record.sequence, record.hash)
    return AuditHead(record.sequence, record.hash, seal(SealPurpose.AUDIT_HEAD, payload, key))


def log(count: int) -> list[AuditRecord]:
    records: list[AuditRecord] = []
    for at in range(count):
        before = records[-1].hash if records else FIRST_HASH
        records.append(chained(draft(f"l{at}"), at + 1, before))
    return records


def rechained(records: Sequence[AuditRecord]) -> list[AuditRecord]:
    """As somebody would mend a log that they changed, who has no key."""
    mended: list[AuditRecord] = []
    for at, record in enumerate(records):
        before = mended[-1].hash if mended else FIRST_HASH
        moved = replace(record, sequence=at + 1, previous_hash=before)
        mended.append(replace(moved, hash=entry_hash(moved)))
    return mended


def problems(
    records: Sequence[AuditRecord],
    heads: Sequence[AuditHead],
    exported: AuditHead | None = None,
) -> tuple[str, ...]:
    def opened(one: Seal) -> bytes:
        return unseal(SealPurpose.AUDIT_HEAD, one, TRUST)

    return verify_log(records, heads, opened, exported=exported)


def append(store: Store, *targets: str) -> None:
    with store.transaction() as transaction:
        for target in targets:
            record = transaction.append_audit(draft(target))
        transaction.put_audit_head(head_of(record))


def checked(store: Store) -> tuple[str, ...]:
    with store.reading() as reader:
        return problems(reader.audit(), reader.audit_heads())


def test_a_log_that_was_only_written_is_whole(store: Store) -> None:
    append(store, "a", "b")
    append(store, "c")
    with store.reading() as reader:
        records = reader.audit()
        assert [one.sequence for one in records] == [1, 2, 3]
        assert [one.target for one in records] == ["a", "b", "c"]
        assert records[0].previous_hash == FIRST_HASH
        assert reader.audit(after_sequence=1, limit=1) == records[1:2]
        assert reader.last_audit() == records[2]
        assert [one.sequence for one in reader.audit_heads()] == [2, 3]
        assert reader.last_audit_head() == head_of(records[2])
        assert reader.head().audit_sequence == 3
    assert checked(store) == ()


def test_what_is_taken_back_leaves_no_gap(store: Store) -> None:
    append(store, "a")
    with store.transaction(dry_run=True) as transaction:
        assert transaction.append_audit(draft("never")).sequence == 2
    append(store, "b")
    assert checked(store) == ()


@pytest.mark.parametrize(
    ("tampering", "said"),
    [
        ("UPDATE audit SET actor = 'eve' WHERE sequence = 2", "entry 2 was changed"),
        ("UPDATE audit SET at_unix_ms = 7 WHERE sequence = 3", "entry 3 was changed"),
        ("UPDATE audit SET detail = '{}' WHERE sequence = 1", "entry 1 was changed"),
        ("DELETE FROM audit WHERE sequence = 2", "entry 2 is missing"),
        ("DELETE FROM audit WHERE sequence = 1", "entry 1 is missing"),
        ("DELETE FROM audit WHERE sequence = 3", "the log ends with entry 2"),
        ("DELETE FROM audit", "the log ends with entry 0"),
        ("UPDATE audit SET sequence = 9 WHERE sequence = 2", "entry 2 is missing"),
        ("UPDATE audit_heads SET kid = 'other' WHERE sequence = 3", "is not signed as it should"),
        ("UPDATE audit_heads SET sequence = 4 WHERE sequence = 3", "is signed for entry 3"),
    ],
)
def test_tampering_with_rows(store: Store, tampering: str, said: str) -> None:
    append(store, "a", "b", "c")
    with store._engine.begin() as connection:
        connection.execute(text(tampering))
    assert said in " / ".join(checked(store))


def test_a_chain_made_anew_is_not_the_one_that_was_signed() -> None:
    records = log(3)
    changed = rechained([records[0], replace(records[1], actor="eve"), records[2]])
    assert problems(changed, [head_of(changed[2])]) == ()  # the chain alone cannot tell
    assert problems(changed, [head_of(records[2])]) == ("entry 3 is not the one that was signed",)


def test_a_log_cut_with_its_heads_is_found_by_an_exported_one() -> None:
    records = log(5)
    cut, heads = records[:3], [head_of(records[2])]
    assert problems(cut, heads) == ()
    assert "signed head says that it went to entry 5" in "".join(
        problems(cut, heads, exported=head_of(records[4]))
    )
    assert problems(records, heads, exported=head_of(records[4])) == ()


def test_a_rewritten_log_is_found_by_an_exported_head() -> None:
    records = log(3)
    other = rechained([replace(one, reason="none") for one in records])
    assert problems(other, [head_of(other[2])], exported=head_of(records[2])) == (
        "two signed heads at entry 3 differ: the log was rewritten",
    )


def test_entries_that_nobody_signed() -> None:
    assert problems(log(3), [head_of(log(3)[1])]) == ("the entries after entry 2 are not signed",)
    assert problems(log(1), []) == ("the entries after entry 0 are not signed",)
    assert problems([], []) == ()


def test_another_key_seals_nothing() -> None:
    records = log(2)
    assert problems(records, [head_of(records[1], SigningKey.create("acme"))])


def test_a_seal_of_another_purpose_is_none() -> None:
    record = log(1)[0]
    payload = audit_head_payload(record.sequence, record.hash)
    other = seal(SealPurpose.CATALOG_HEAD, payload, KEY)
    assert problems([record], [AuditHead(1, record.hash, other)])


def test_problems_are_not_told_without_end() -> None:
    records = [replace(one, hash=bytes(32)) for one in log(300)]
    found = problems(records, [])
    assert len(found) == 101
    assert found[-1] == "and more"


@given(
    count=st.integers(1, 12),
    data=st.data(),
)
def test_any_change_is_found(count: int, data: st.DataObject) -> None:
    records = log(count)
    heads = [head_of(records[-1])]
    assert problems(records, heads) == ()
    at = data.draw(st.integers(0, count - 1))
    kind = data.draw(st.sampled_from(["edit", "delete", "swap", "twice", "truncate"]))
    changed = list(records)
    if kind == "edit":
        name = data.draw(st.sampled_from(["actor", "role", "action", "target", "reason", "detail"]))
        value = data.draw(st.text().filter(lambda text: text != getattr(records[at], name)))
        changed[at] = replace(records[at], **{name: value})  # type: ignore[arg-type]
    elif kind == "delete":
        del changed[at]
    elif kind == "swap":
        other = data.draw(st.integers(0, count - 1).filter(lambda one: one != at or count == 1))
        if other == at:
            return
        changed[at], changed[other] = changed[other], changed[at]
    elif kind == "twice":
        changed.insert(at, records[at])
    else:
        del changed[at:]
    assert problems(changed, heads)
    # Who changes rows would number and chain them again; the seal still stands.
    if rechained(changed) != records:  # an extra entry at the end has no seal over it
        assert problems(rechained(changed), heads)


@given(
    st.lists(
        st.builds(
            AuditDraft,
            at_unix_ms=st.integers(0, 2**63 - 1),
            actor=st.text(),
            role=st.text(),
            action=st.text(),
            target=st.text(),
            reason=st.text(),
            request_id=st.text(),
            detail=st.text(),
        ),
        min_size=2,
        max_size=2,
        unique=True,
    )
)
def test_no_two_entries_share_a_hash(drafts: list[AuditDraft]) -> None:
    one, two = (chained(draft, 1, FIRST_HASH) for draft in drafts)
    assert one.hash != two.hash
