# SPDX-License-Identifier: Apache-2.0
"""Flipped bits, lost files and old backups: nothing is counted twice, and each gap has its name."""

from __future__ import annotations

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.support.simdisk import Inode
from tests.unit.store.ledger_world import FOLDER, LIMITS, Host

from licagent.store.ledger import Ledger
from licagent.store.ledger_types import Batch, LedgerBlocked
from licagent.store.segments import SegmentName
from licagent.store.usagechain import chain_hash


def lived(seed: int, *, commits: int = 12, delivered_at: int = 0) -> Host:
    host = Host(seed)
    host.start()
    for number in range(commits):
        host.use(host.dice.randrange(1, 9))
        host.commit()
        if number == commits // 2:
            assert host.ledger is not None
            host.ledger.begin_epoch("a test")
        if number == delivered_at:
            host.deliver(limit_bytes=10**6)
        host.clock_ms += 5000
    return host


def segments(host: Host) -> list[str]:
    return sorted(name for name in host.disk.names_now if SegmentName.parse(name))


def stop(host: Host) -> None:
    assert host.ledger is not None
    host.ledger.close()
    host.killed()


def reconcile(host: Host) -> None:
    """What a client does when the server knows another chain."""
    assert host.ledger is not None
    for state in host.ledger.epochs():
        arrived = host.server.epochs.get(state.epoch)
        if arrived and not host.ledger.acknowledge(arrived.acked, arrived.hash, epoch=state.epoch):
            host.ledger.diverged(state.epoch, "the server has another chain")


@given(
    seed=st.integers(0, 2**32),
    flips=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
        min_size=1,
        max_size=4,
    ),
    delivered_at=st.integers(0, 12),
    running=st.booleans(),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_flipped_bits(
    seed: int, flips: list[tuple[float, float]], delivered_at: int, running: bool
) -> None:
    host = lived(seed, delivered_at=delivered_at)
    if not running:
        stop(host)
    names = sorted(host.disk.names_now)
    for which, where in flips:
        name = names[int(which * len(names))]
        host.disk.flip(name, int(where * 8 * len(host.disk.names_now[name].content)))
    if not running:
        host.start()
    reconcile(host)
    host.use(3)
    host.drain()
    host.check()
    assert host.ledger is not None
    host.ledger.verify()
    # A later daemon finds the same.
    stop(host)
    host.start()
    reconcile(host)
    host.use(1)
    host.drain()
    host.check()


@given(seed=st.integers(0, 2**32), where=st.floats(0, 1, exclude_max=True))
@settings(max_examples=40)
def test_one_flipped_bit_costs_one_batch_at_most(seed: int, where: float) -> None:
    host = lived(seed, delivered_at=99)
    stop(host)
    names = segments(host)
    sizes = [len(host.disk.names_now[name].content) for name in names]
    bit = int(where * 8 * sum(sizes))
    for name, size in zip(names, sizes, strict=True):
        if bit < 8 * size:
            host.disk.flip(name, bit)
            break
        bit -= 8 * size
    host.start()
    host.drain()
    host.check()
    gaps = [gap for arrived in host.server.epochs.values() for gap in arrived.gaps]
    assert len(gaps) <= 1
    for gap in gaps:
        assert gap.last - gap.first < 8  # a commit had at most eight records here
        assert gap.reason == "damaged: its checksum does not fit"
        assert gap.signature
        assert host.ledger is not None
        assert gap in host.ledger.gaps
        assert str(gap.first) in " ".join(host.ledger.problems)


@given(seed=st.integers(0, 2**32), which=st.integers(0, 20), cut=st.floats(0, 1))
@settings(max_examples=50)
def test_segments_that_are_cut_or_gone(seed: int, which: int, cut: float) -> None:
    host = lived(seed, delivered_at=99)
    stop(host)
    names = segments(host)[:-1]  # of the newest nobody can tell that there was more
    assume(which < len(names))
    content = host.disk.names_now[names[which]].content
    if cut == 0:
        del host.disk.names_now[names[which]]
    else:
        del content[int(cut * len(content)) :]
    host.start()
    host.drain()
    host.check()


def test_all_keys_lost() -> None:
    host = lived(1, delivered_at=99)
    stop(host)
    del host.disk.names_now["epochs.keys"]
    ledger = host.start()
    assert "key" in ledger.problems[0]
    assert ledger.verify().is_intact
    host.use(3)
    host.drain()
    host.check()
    assert len(host.server.epochs) == 3  # what the old keys signed is good


def test_everything_lost_is_a_new_epoch_and_not_the_old_numbers() -> None:
    host = lived(1, delivered_at=11)
    stop(host)
    known = set(host.server.epochs)
    host.disk.names_now.clear()
    host.disk.names_durable.clear()
    ledger = host.start()
    assert ledger.epoch not in known
    assert ledger.next_sequence == 1


def test_a_folder_from_a_backup_gives_no_number_twice() -> None:
    host = lived(1, commits=5, delivered_at=99)
    stop(host)
    backup = {
        name: Inode(bytearray(each.content), bytearray(each.durable))
        for name, each in host.disk.names_now.items()
    }
    host.start()
    for _ in range(4):
        host.use(5)
        host.commit()
    host.drain()
    stop(host)
    host.disk.names_now = dict(backup)
    host.disk.names_durable = dict(backup)
    ledger = host.start()
    host.use(4)
    before = host.closed
    host.commit()  # before the server is asked: a number that it has already
    assert before is None
    state = ledger.epochs()[-1]
    arrived = host.server.epochs[state.epoch]
    assert arrived.acked > state.next_sequence
    assert not ledger.acknowledge(arrived.acked, arrived.hash, epoch=state.epoch)
    ledger.diverged(state.epoch, "the server has another chain")
    assert [gap.reason for gap in ledger.gaps] == ["the server has another chain"]
    ledger.diverged(state.epoch, "twice is once")
    host.use(2)
    host.commit()
    stop(host)
    ledger = host.start()
    newest = ledger.epochs()[-1]
    assert newest.epoch > state.epoch
    assert state.epoch not in [each.epoch for each in ledger.epochs()]
    host.deliver()
    assert host.server.epochs[newest.epoch].acked == 2


def test_a_disk_that_cannot_be_read_waits_and_then_names_the_gap() -> None:
    host = lived(3, delivered_at=99)
    stop(host)
    ledger = host.start()
    host.disk.unreadable.add(segments(host)[0])
    blocked = 0
    for _ in range(10):
        try:
            host.deliver(limit_bytes=10**9)
        except LedgerBlocked:
            blocked += 1
    assert blocked == 3
    host.drain()
    host.check()
    assert ledger.gaps


def test_a_damaged_segment_is_kept_when_it_is_not_needed_any_more() -> None:
    host = Host(4)
    host.start()
    for _ in range(6):
        host.use(8)
        host.commit()
    host.disk.flip(segments(host)[0], 8 * 900)
    host.deliver(limit_bytes=10**9)
    for _ in range(60):
        host.use(8)
        host.commit()
        host.deliver(limit_bytes=10**9)
    assert [name for name in host.disk.names_now if name.endswith(".damaged")]
    host.drain()
    host.check()


def test_an_altered_record_is_found() -> None:
    host = lived(5, delivered_at=99)
    ledger = host.ledger
    assert ledger is not None
    assert ledger.verify().is_intact
    report = ledger.verify()
    assert report.records == len(host.given)
    assert len(report.epochs) == 2
    name = segments(host)[1]
    parsed = SegmentName.parse(name)
    assert parsed is not None
    # Somebody without the key writes a whole new frame with good checksums.
    other = Host(6)
    other.disk = type(other.disk)()
    other_ledger = Ledger(FOLDER, boot_id="b", files=other.disk, limits=LIMITS)
    other_ledger.commit([b"free of charge"], {})
    forged = next(each for each in other.disk.names_now if SegmentName.parse(each))
    host.disk.names_now[name] = other.disk.names_now[forged]
    report = ledger.verify()
    assert not report.is_intact
    assert report.gaps


def test_an_ack_is_believed_only_with_our_hash() -> None:
    host = lived(7, delivered_at=99)
    ledger = host.ledger
    assert ledger is not None
    first = next(ledger.batches(0, limit_bytes=1))
    assert isinstance(first, Batch)
    assert not ledger.acknowledge(first.last, bytes(32))
    assert not ledger.acknowledge(10**9, first.hash)
    assert not ledger.acknowledge(first.last, first.hash, epoch=1)
    assert not ledger.acknowledge(-1, first.hash)
    assert ledger.first_unacknowledged == 1
    assert ledger.acknowledge(first.last, first.hash)
    assert ledger.acknowledge(first.last, first.hash)
    assert not ledger.acknowledge(first.last, bytes(32))
    assert ledger.acknowledged == (first.last, first.hash)
    # In the middle of a batch too; then the whole batch comes again.
    second = next(ledger.batches(first.last, limit_bytes=1))
    assert isinstance(second, Batch)
    while len(second.records) < 2:
        second = next(ledger.batches(second.last, limit_bytes=1))
        assert isinstance(second, Batch)
    middle = chain_hash(second.previous_hash, second.first, second.records[:1])
    assert ledger.acknowledge(second.first, middle)
    assert next(ledger.batches(second.first, limit_bytes=1)) == second


def test_a_newest_frame_that_is_wholly_destroyed_gives_no_number_twice() -> None:
    for has_server_seen_it in (False, True):
        host = lived(8, delivered_at=99)
        host.deliver(limit_bytes=10**9)
        host.use(4)
        host.commit()
        assert host.ledger is not None
        old = host.ledger.epochs()[-1]
        if has_server_seen_it:
            host.deliver(limit_bytes=10**9, lose_ack=True)
        stop(host)
        inode = host.disk.names_now[segments(host)[-1]]
        begin = inode.content.rfind(inode.content[:8])  # the marker of the last frame
        for content in (inode.content, inode.durable):
            content[begin:] = b"\xff" * (len(content) - begin)
        ledger = host.start()
        assert "passed over" in ledger.problems[0]
        host.use(5)
        host.commit()
        assert ledger.epochs()[-1].epoch > old.epoch  # the old one's chain is not known any more
        reconcile(host)
        host.drain()
        host.check()
        gaps = host.server.epochs[old.epoch].gaps
        if has_server_seen_it:
            assert not gaps  # it has everything; the host only cannot tell
            assert [gap.epoch for gap in ledger.gaps] == [old.epoch]
        else:
            (gap,) = gaps
            assert gap.first == old.next_sequence - 4
            assert "perhaps none" in gap.reason
