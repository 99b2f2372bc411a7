# SPDX-License-Identifier: Apache-2.0
"""Usage records as bytes: what goes in comes out, and nothing else does."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licagent.control import usage_wire
from licagent.control.usage_wire import (
    TEXT_BYTES_MAX,
    RecordDamaged,
    decode,
    encode,
    encode_lines,
)
from licagent.domain.usage import Meter, UsageKind, UsageOwner, UsageRecord
from licagent.domain.usage_lines import ComputeLines, UsageLine
from licapi.control.v1 import telemetry_pb2
from licplane.api.usage_reading import RECORD_BYTES_MAX, RecordReader
from licplane.store import usage_model

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60)
TIME = st.integers(0, 253_402_300_799_999)
METERS = st.frozensets(st.sampled_from(list(Meter)))


@st.composite
def records(draw: st.DrawFn) -> UsageRecord:
    start_ms, end_ms = sorted((draw(TIME), draw(TIME)))
    return UsageRecord(
        kind=draw(st.sampled_from(list(UsageKind))),
        start_unix_ms=start_ms,
        end_unix_ms=end_ms,
        quantities=draw(st.dictionaries(st.sampled_from(list(Meter)), st.integers(1, 2**63 - 1))),
        owner=UsageOwner(
            unit=draw(TEXT),
            cgroup=draw(TEXT),
            user=draw(TEXT),
            uid=draw(st.integers(-1, 2**32 - 2)),
            executable=draw(TEXT),
            pid=draw(st.integers(0, 2**22)),
            process_start_unix_ms=draw(TIME),
        ),
        license=draw(TEXT),
        resource=draw(TEXT),
        binding=draw(TEXT),
        protocol=draw(st.integers(0, 255)),
        is_loopback=draw(st.booleans()),
        estimated=draw(METERS),
        unsupported=draw(METERS),
        detail=draw(TEXT),
    )


@given(records())
def test_what_goes_in_comes_out(record: UsageRecord) -> None:
    assert decode(encode(record)) == record
    assert encode(decode(encode(record))) == encode(record)


@given(records())
def test_the_parts_are_one_message_in_the_usual_form(record: UsageRecord) -> None:
    data = encode(record)
    message = telemetry_pb2.UsageRecord.FromString(data)
    assert message.SerializeToString(deterministic=True) == data


@given(records())
def test_the_control_plane_reads_the_same(record: UsageRecord) -> None:
    read = RecordReader().read(7, [encode(record)])
    assert not read.refused
    (row,) = read.rows
    assert (row.sequence, row.kind) == (7, record.kind)
    assert (row.start_ms, row.end_ms) == (record.start_unix_ms, record.end_unix_ms)
    assert dict(zip((name for name, _ in usage_model.METERS), row.quantities, strict=True)) == {
        meter.key: record.quantities.get(meter, 0) for meter in Meter
    }
    assert row.owner == (
        record.owner.unit,
        record.owner.cgroup,
        record.owner.user,
        record.owner.uid,
        record.owner.executable,
    )
    assert (row.license, row.resource, row.binding) == (
        record.license,
        record.resource,
        record.binding,
    )
    assert row.estimated == sum(
        1 << (meter - usage_model.METER_FIRST) for meter in record.estimated
    )


def test_both_sides_have_the_same_meters() -> None:
    assert [(meter.key, int(meter)) for meter in Meter] == list(usage_model.METERS)
    assert {kind.name: int(kind) for kind in UsageKind} == {
        kind.name: int(kind) for kind in usage_model.UsageKind
    }


@given(st.text(max_size=40), st.text(max_size=3000))
def test_any_text_is_taken(short: str, long: str) -> None:
    """Paths may hold any bytes (as surrogates), NULs, and be long."""
    texts = [short, long, short + long * 3]
    made = [
        encode(UsageRecord(UsageKind.COMPUTE, 0, 1, {}, owner=UsageOwner(executable=one)))
        for one in texts
    ]
    read = RecordReader().read(1, made)
    assert not read.refused
    for one in made:
        text = decode(one).owner.executable
        assert len(text.encode()) <= TEXT_BYTES_MAX


def test_long_texts_stay_apart_and_records_short() -> None:
    paths = ["/" + "a" * 5000 + end for end in "xy"]
    texts = {
        decode(
            encode(UsageRecord(UsageKind.COMPUTE, 0, 1, {}, owner=UsageOwner(cgroup=one)))
        ).owner.cgroup
        for one in paths
    }
    assert len(texts) == 2
    owner = UsageOwner(*("x" * 9999 for _ in range(3)), uid=1, executable="x" * 9999)
    longest = UsageRecord(
        UsageKind.GAP, 0, 1, dict.fromkeys(Meter, 2**63), owner, *("x" * 9999 for _ in range(3)),
        estimated=frozenset(Meter), unsupported=frozenset(Meter), detail="x" * 9999,
    )  # fmt: skip
    assert len(encode(longest)) < RECORD_BYTES_MAX


@pytest.mark.parametrize("quantity", [-1, 2**64])
def test_a_number_that_does_not_fit_is_not_sent_as_another_one(quantity: int) -> None:
    with pytest.raises(ValueError, match="cpu_ns"):
        encode(UsageRecord(UsageKind.COMPUTE, 0, 1, {Meter.CPU_NS: quantity}))


@given(st.binary(max_size=60))
def test_other_bytes_are_damaged_or_a_record(data: bytes) -> None:
    try:
        found = decode(data)
    except RecordDamaged:
        return
    assert isinstance(found, UsageRecord)


def test_what_is_kept_of_an_owner_goes_with_him() -> None:
    kept = len(usage_wire._made)
    for number in range(2000):
        owner = UsageOwner(unit="u", pid=number, process_start_unix_ms=number)
        for license_ in ("a", "b"):
            record = UsageRecord(UsageKind.COMPUTE, 1, 2, {}, owner, license=license_)
            assert decode(encode(record)) == record
    del owner, record
    gc.collect()
    # `decode` shares owners, and keeps the latest of them.
    assert len(usage_wire._made) <= kept + 4


AMOUNTS = st.tuples(*[st.integers(0, 2**64 - 1)] * 6)


@given(st.lists(st.tuples(records(), AMOUNTS), max_size=4), METERS, METERS)
def test_lines_are_written_as_their_records_are(
    drawn: list[tuple[UsageRecord, tuple[int, ...]]],
    estimated: frozenset[Meter],
    unsupported: frozenset[Meter],
) -> None:
    rows = [
        (UsageLine(each.owner, each.license, each.resource, each.binding), amounts)
        for each, amounts in drawn
    ]
    lines = ComputeLines(1_700_000_000_000, 1_700_000_005_000, rows, estimated, unsupported)
    expected = [encode(record) for record in lines]
    assert encode_lines(lines) == expected
    assert encode_lines(lines) == expected  # with what was kept of each line


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("quantity", [-1, 2**64])
def test_a_line_that_does_not_fit_is_not_written_as_another(place: int, quantity: int) -> None:
    amounts = tuple(quantity if each == place else 1 for each in range(6))
    rows = [(UsageLine(UsageOwner(pid=1)), amounts)]
    with pytest.raises(ValueError, match=r".+"):
        encode_lines(ComputeLines(1, 2, rows))
