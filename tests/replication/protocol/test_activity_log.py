from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.protocol.activity_log import (
    CONTEXT_SLOTS,
    FREE,
    INITIALISED_BLOCK,
    Activation,
    ActivityLog,
    Kind,
    Transaction,
    decode_transaction,
    encode_transaction,
    initialised_ring,
    replay,
    ring_in_order,
)
from replication.protocol.errors import MetadataError
from replication.protocol.metadata import BLOCK_BYTES, Layout, internal_layout

LAYOUT = internal_layout(64 << 30)
STRIPED = internal_layout(64 << 30, al_stripes=3, al_stripe_size_4k=5)


class Ring:
    """The ring on a disk."""

    def __init__(self, layout: Layout = LAYOUT) -> None:
        self.layout = layout
        self.data = bytearray(initialised_ring(layout))

    def write(self, activation: Activation | None) -> None:
        assert activation is not None
        for offset, block in activation.writes:
            self.put(offset, block)

    def put(self, offset: int, block: bytes) -> None:
        at = offset - self.layout.al_offset
        assert 0 <= at <= len(self.data) - BLOCK_BYTES
        assert len(block) == BLOCK_BYTES
        self.data[at : at + BLOCK_BYTES] = block

    def damage(self, transaction: int) -> None:
        self.data[self.layout.ring_block_offset(transaction) - self.layout.al_offset + 500] ^= 1

    def blocks(self) -> list[bytes]:
        return ring_in_order(self.layout, self.data)

    def hot(self) -> frozenset[int]:
        found = replay(self.blocks())
        assert found.complete
        return found.extents


def activated(log: ActivityLog, *extents: int, held: frozenset[int] = frozenset()) -> Activation:
    activation = log.activate(extents, held)
    assert activation is not None
    return activation


# The table


def test_a_hot_extent_costs_nothing_more() -> None:
    log = ActivityLog(67, LAYOUT)
    first = activated(log, 5)
    assert len(first.writes) == 1
    assert log.is_hot(5)
    assert 5 in log.hot
    assert activated(log, 5) == Activation([], [])


def test_many_cold_extents_share_a_transaction() -> None:
    log = ActivityLog(1237, LAYOUT)
    assert len(activated(log, *range(64)).writes) == 1
    assert len(activated(log, *range(64, 64 + 65)).writes) == 2


def test_the_extent_not_used_for_longest_goes_first() -> None:
    log = ActivityLog(3, LAYOUT)
    activated(log, 1)
    activated(log, 2)
    activated(log, 3)
    log.touch(1)
    assert activated(log, 4).evicted == [2]
    assert activated(log, 3).evicted == []
    assert activated(log, 5, 6).evicted == [1, 4]
    assert set(log.hot) == {3, 5, 6}


def test_an_extent_in_use_is_never_evicted() -> None:
    log = ActivityLog(3, LAYOUT)
    activated(log, 1, 2, 3)
    assert activated(log, 4, held=frozenset({1, 2})).evicted == [3]
    assert log.activate([5], {1, 2, 4}) is None
    assert set(log.hot) == {1, 2, 4}


def test_a_wanted_extent_is_not_evicted_for_another() -> None:
    log = ActivityLog(3, LAYOUT)
    activated(log, 1, 2, 3)
    assert activated(log, 1, 4, 5).evicted == [2, 3]
    assert log.activate([1, 2, 3, 4]) is None


def test_a_log_larger_than_its_ring_can_name_is_refused() -> None:
    ActivityLog(6433, LAYOUT)
    with pytest.raises(MetadataError, match=r"al-extents to 1\.\.6433"):
        ActivityLog(6434, LAYOUT)


# Blocks


def transactions() -> st.SearchStrategy[Transaction]:
    def build(al_extents: int, number: int, seed: int, count: int) -> Transaction:
        rng = random.Random(seed)
        start = rng.randrange(al_extents)
        updates = tuple((rng.randrange(al_extents), rng.randrange(1 << 32)) for _ in range(count))
        return Transaction(Kind.UPDATE, number, updates, al_extents, start, rng.randbytes(4 * CONTEXT_SLOTS))

    return st.builds(build, st.integers(1, 65534), st.integers(0, 2**32 - 1), st.integers(0, 2**32), st.integers(0, 64))


@given(transactions())
def test_a_transaction_survives_the_disk(transaction: Transaction) -> None:
    block = encode_transaction(transaction)
    assert len(block) == BLOCK_BYTES
    assert decode_transaction(block) == transaction


@given(transactions(), st.integers(0, BLOCK_BYTES * 8 - 1))
@settings(max_examples=50)
def test_one_wrong_bit_is_noticed(transaction: Transaction, bit: int) -> None:
    block = bytearray(encode_transaction(transaction))
    block[bit // 8] ^= 1 << bit % 8
    with pytest.raises(MetadataError):
        decode_transaction(block)


def test_an_initialised_block_is_the_one_that_drbdmeta_writes() -> None:
    assert INITIALISED_BLOCK[:16].hex() == "69cb65a200000000709cc651ffff0000"
    assert not any(INITIALISED_BLOCK[16:])
    assert decode_transaction(INITIALISED_BLOCK).kind is Kind.INITIALISED


# Replay


@pytest.mark.parametrize("layout", [LAYOUT, STRIPED], ids=["1x8", "3x5"])
@pytest.mark.parametrize("al_extents", [7, 67, 919, 1237, 6433])
@pytest.mark.parametrize("first", [0, 2**32 - 5])
def test_after_any_history_the_ring_names_what_is_hot(layout: Layout, al_extents: int, first: int) -> None:
    rng = random.Random(al_extents)
    log, ring = ActivityLog(al_extents, layout, first), Ring(layout)
    for _ in range(25):
        wanted = [rng.randrange(al_extents * 2) for _ in range(rng.randrange(1, min(al_extents, 200)))]
        ring.write(log.activate(wanted))
        if layout is LAYOUT or first == 0:  # 2^32 is no multiple of 15: there the order of the ring is broken once
            assert ring.hot() == set(log.hot)


def test_a_torn_newest_block_is_as_if_never_written() -> None:
    for count in range(1, 30):
        log, ring = ActivityLog(1237, LAYOUT), Ring()
        before: set[int] = set()
        for number in range(count):
            before = set(log.hot)
            ring.write(log.activate(range(number * 40, number * 40 + 60)))
        ring.damage(count - 1)
        found = replay(ring.blocks())
        assert found.invalid_blocks == 1
        assert found.complete
        assert found.extents == before


@pytest.mark.parametrize("count", [3, 8, 20])
def test_damage_that_no_torn_write_explains_is_said(count: int) -> None:
    log, ring = ActivityLog(1237, LAYOUT), Ring()
    for number in range(count):
        ring.write(log.activate([number]))
    ring.damage(count - 2)
    assert not replay(ring.blocks()).complete


def test_a_damaged_first_block_is_said_unless_the_others_name_every_slot() -> None:
    log, ring = ActivityLog(2000, LAYOUT), Ring()
    for number in range(4):
        ring.write(log.activate([number]))
        if number == 1:
            early = bytes(ring.data)
    ring.damage(0)
    assert replay(ring.blocks()).complete
    assert replay(ring.blocks()).extents == {0, 1, 2, 3}
    ring.data[:] = early
    ring.damage(0)
    assert not replay(ring.blocks()).complete


def test_an_empty_ring_has_nothing_hot() -> None:
    found = replay(Ring().blocks())
    assert (found.extents, found.newest_transaction, found.complete) == (frozenset(), None, True)


def test_a_ring_without_a_valid_block_says_nothing() -> None:
    with pytest.raises(MetadataError, match="none of its blocks is valid"):
        replay([bytes(BLOCK_BYTES)] * 8)


def test_a_slot_that_became_free_is_not_hot() -> None:
    free = (FREE).to_bytes(4) * CONTEXT_SLOTS
    blocks = [
        encode_transaction(Transaction(Kind.UPDATE, 0, ((0, 3), (5, 9)), 67, 0, free)),
        encode_transaction(Transaction(Kind.UPDATE, 1, ((0, FREE),), 67, 60, free)),
    ]
    assert replay(blocks + [INITIALISED_BLOCK] * 6).extents == {9}


def test_numbers_that_went_round_keep_their_order() -> None:
    free = (FREE).to_bytes(4) * CONTEXT_SLOTS
    blocks = [
        encode_transaction(Transaction(Kind.UPDATE, 0, ((0, 5),), 67, 66, free)),
        *[INITIALISED_BLOCK] * 6,
        encode_transaction(Transaction(Kind.UPDATE, 2**32 - 1, ((0, 3), (1, 4)), 67, 0, free)),
    ]
    found = replay(blocks)
    assert found.extents == {4, 5}
    assert found.newest_transaction == 0
