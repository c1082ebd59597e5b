from __future__ import annotations

import pytest

from replication.protocol.epoch import TransferLog
from replication.protocol.errors import PeerError
from replication.protocol.requests import WRITE, Request


def sent(log: TransferLog, block_id: int, at: float = 1.0, extent: int = 0) -> None:
    log.in_flight[block_id] = (Request("client", WRITE, 0, block_id, 0, 512), extent << 22, 512, at)
    log.current.count += 1
    log.current.extents.add(extent)
    log.current.ranges.append((extent << 22, 512))


def test_an_epoch_without_writes_needs_no_barrier() -> None:
    assert TransferLog().close(1.0) is None


def test_epochs_are_numbered_one_after_the_other() -> None:
    log = TransferLog(0xFFFFFFFF)
    for number in (0xFFFFFFFF, 0, 1):
        sent(log, 1)
        ended = log.close(1.0)
        assert ended is not None
        assert ended.number == number


def test_the_oldest_epoch_is_acknowledged_first() -> None:
    log = TransferLog()
    for _ in range(2):
        sent(log, 1)
        log.close(1.0)
    with pytest.raises(PeerError, match="acknowledged barrier 2, expected 1"):
        log.acknowledged(2, 1)
    assert log.acknowledged(1, 1).number == 1
    assert log.acknowledged(2, 1).number == 2


def test_an_acknowledgement_of_nothing_is_the_peers_error() -> None:
    with pytest.raises(PeerError, match="expected none"):
        TransferLog().acknowledged(1, 0)


def test_both_sides_have_counted_the_same_writes() -> None:
    log = TransferLog()
    sent(log, 1)
    sent(log, 2)
    log.close(1.0)
    with pytest.raises(PeerError, match="counted 1 writes in epoch 1, we sent 2"):
        log.acknowledged(1, 1)
    assert len(log.closed) == 1


def test_extents_are_held_until_their_epoch_is_stable_on_the_peer() -> None:
    log = TransferLog()
    sent(log, 1, extent=3)
    log.close(1.0)
    sent(log, 2, extent=5)
    assert log.held_extents() == {3, 5}
    log.acknowledged(1, 1)
    assert log.held_extents() == {5}


def test_a_written_write_is_in_the_log_until_it_is_stable() -> None:
    log = TransferLog()
    sent(log, 1)
    del log.in_flight[1]
    assert not log.is_empty
    log.close(1.0)
    assert [epoch.ranges for epoch in log.epochs()] == [[(0, 512)]]
    log.acknowledged(1, 1)
    assert log.is_empty


def test_the_oldest_unanswered_thing_may_be_a_write_or_a_barrier() -> None:
    log = TransferLog()
    assert log.oldest() is None
    sent(log, 1, at=5.0)
    assert log.oldest() == 5.0
    log.close(7.0)
    assert log.oldest() == 5.0
    del log.in_flight[1]
    assert log.oldest() == 7.0
