"""The cache against a model that remembers every version of every sector, and a planted bug that must be caught."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vagrant.namespaces.disk.cache import SECTOR_BYTES, Keep, WriteCache

SECTORS = 8
BOUND_BYTES = 64 * SECTOR_BYTES


class Broken(Exception):
    """A sector came back as what it cannot be."""


class ModelDisk:
    """A tiny disk that checks, at each power cut, each sector against the versions that it may come back as."""

    def __init__(self, cache: WriteCache) -> None:
        self.cache = cache
        self.contents = bytearray(SECTORS * SECTOR_BYTES)
        self.allowed = [[self.sector(number)] for number in range(SECTORS)]
        self.version = 0

    def sector(self, number: int) -> bytes:
        return bytes(self.contents[number * SECTOR_BYTES : (number + 1) * SECTOR_BYTES])

    def write(self, first: int, count: int, *, stable: bool = False) -> None:
        self.version += 1
        start, end = first * SECTOR_BYTES, (first + count) * SECTOR_BYTES
        if stable:
            self.cache.settle(start, end - start)
        else:
            self.cache.write(start, end - start)[:] = self.contents[start:end]
        self.contents[start:end] = self.version.to_bytes(SECTOR_BYTES, "big") * count
        for number in range(first, first + count):
            self.allowed[number] = [*([] if stable else self.allowed[number]), self.sector(number)]

    def flush(self) -> None:
        self.cache.flush()
        self.allowed = [[self.sector(number)] for number in range(SECTORS)]

    def lose_power(self, keep: Keep, seed: int) -> None:
        newest = [self.sector(number) for number in range(SECTORS)]
        loss = self.cache.lose_power(keep, Random(seed).randrange)
        for offset_bytes, contents in loss.restore:
            self.contents[offset_bytes : offset_bytes + len(contents)] = contents
        for number in range(SECTORS):
            expected = {Keep.ALL: [newest[number]], Keep.NONE: self.allowed[number][:1]}.get(keep, self.allowed[number])
            if self.sector(number) not in expected:
                raise Broken(f"sector {number} came back as none of {len(expected)} versions")
        if (
            loss.kept + loss.lost != loss.at_risk
            or sum(len(old) for _, old in loss.restore) != loss.lost * SECTOR_BYTES
        ):
            raise Broken(f"{loss.at_risk} at risk, {loss.kept} kept, {loss.lost} lost do not add up")
        self.allowed = [[self.sector(number)] for number in range(SECTORS)]


ranges = st.integers(0, SECTORS - 1).flatmap(lambda first: st.tuples(st.just(first), st.integers(1, SECTORS - first)))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), ranges),
        st.tuples(st.just("write stable"), ranges),
        st.tuples(st.just("flush")),
        st.tuples(st.just("lose power"), st.sampled_from(Keep), st.integers(0, 1000)),
    ),
    max_size=7,  # 7 writes of 8 sectors stay within the bound, so nothing becomes stable of its own accord
)


def play(disk: ModelDisk, script: list[tuple]) -> None:  # type: ignore[type-arg]
    for verb, *arguments in script:
        match verb:
            case "write":
                disk.write(*arguments[0])
            case "write stable":
                disk.write(*arguments[0], stable=True)
            case "flush":
                disk.flush()
            case "lose power":
                disk.lose_power(*arguments)
    disk.lose_power(Keep.RANDOM, 7)


@given(steps)
@settings(max_examples=300, deadline=None)
def test_after_a_power_cut_each_sector_is_a_version_since_its_last_flush(script: list[tuple]) -> None:  # type: ignore[type-arg]
    play(ModelDisk(WriteCache(BOUND_BYTES)), script)


@pytest.mark.parametrize("keep", Keep)
def test_what_a_flush_covered_is_always_there(keep: Keep) -> None:
    for seed in range(50):
        disk = ModelDisk(WriteCache(BOUND_BYTES))
        disk.write(0, SECTORS)
        disk.flush()
        covered = bytes(disk.contents)
        disk.lose_power(keep, seed)
        assert disk.contents == covered


def test_unflushed_sectors_are_old_in_one_power_cut_and_new_in_another() -> None:
    seen: list[set[bytes]] = [set() for _ in range(SECTORS)]
    for seed in range(50):
        disk = ModelDisk(WriteCache(BOUND_BYTES))
        disk.write(0, SECTORS)
        disk.lose_power(Keep.RANDOM, seed)
        for number in range(SECTORS):
            seen[number].add(disk.sector(number))
    assert [len(versions) for versions in seen] == [2] * SECTORS


def test_one_write_may_be_torn_between_its_sectors() -> None:
    torn = 0
    for seed in range(50):
        disk = ModelDisk(WriteCache(BOUND_BYTES))
        disk.write(0, SECTORS)
        disk.lose_power(Keep.RANDOM, seed)
        torn += len({disk.sector(number) for number in range(SECTORS)}) == 2
    assert torn > 40


def test_a_version_between_the_stable_and_the_newest_one_may_survive() -> None:
    survivors = set()
    for seed in range(50):
        disk = ModelDisk(WriteCache(BOUND_BYTES))
        for _ in range(3):
            disk.write(2, 1)
        disk.lose_power(Keep.RANDOM, seed)
        survivors.add(int.from_bytes(disk.sector(2), "big"))
    assert survivors == {0, 1, 2, 3}


def test_a_later_write_may_survive_an_earlier_one_that_does_not() -> None:
    outcomes = set()
    for seed in range(50):
        disk = ModelDisk(WriteCache(BOUND_BYTES))
        disk.write(0, 1)
        disk.write(1, 1)
        disk.lose_power(Keep.RANDOM, seed)
        outcomes.add(tuple(any(disk.sector(number)) for number in (0, 1)))
    assert outcomes == {(False, False), (False, True), (True, False), (True, True)}


def test_forced_unit_access_covers_its_own_sectors_and_no_others() -> None:
    outcomes = set()
    for seed in range(50):
        disk = ModelDisk(WriteCache(BOUND_BYTES))
        disk.write(0, 2)
        disk.write(1, 1, stable=True)
        disk.lose_power(Keep.RANDOM, seed)
        assert int.from_bytes(disk.sector(1), "big") == 2
        outcomes.add(int.from_bytes(disk.sector(0), "big"))
    assert outcomes == {0, 1}


def test_the_same_seed_loses_the_same_sectors() -> None:
    def contents_after(seed: int) -> bytes:
        disk = ModelDisk(WriteCache(BOUND_BYTES))
        disk.write(0, SECTORS)
        disk.lose_power(Keep.RANDOM, seed)
        return bytes(disk.contents)

    assert contents_after(3) == contents_after(3)
    assert len({contents_after(seed) for seed in range(10)}) > 1


def test_over_the_bound_the_oldest_writes_become_stable_and_the_newest_stay_at_risk() -> None:
    cache = WriteCache(4 * SECTOR_BYTES)
    for sector in range(10):
        cache.write(sector * SECTOR_BYTES, SECTOR_BYTES)[:] = bytes([sector]) * SECTOR_BYTES
    loss = cache.lose_power(Keep.NONE, Random(0).randrange)
    assert loss.restore == [(6 * SECTOR_BYTES, b"".join(bytes([sector]) * SECTOR_BYTES for sector in range(6, 10)))]


def test_a_pre_image_is_never_split_at_the_end_of_the_ring() -> None:
    cache = WriteCache(4 * SECTOR_BYTES)
    cache.write(0, 3 * SECTOR_BYTES)[:] = b"a" * 3 * SECTOR_BYTES
    cache.write(8 * SECTOR_BYTES, 2 * SECTOR_BYTES)[:] = b"b" * 2 * SECTOR_BYTES
    assert cache.lose_power(Keep.NONE, Random(0).randrange).restore == [(8 * SECTOR_BYTES, b"b" * 2 * SECTOR_BYTES)]


def test_settled_sectors_do_not_pile_up_behind_one_that_is_never_flushed() -> None:
    cache = WriteCache(4 * SECTOR_BYTES)
    cache.write(0, SECTOR_BYTES)[:] = bytes(SECTOR_BYTES)
    for _ in range(200_000):
        cache.settle(SECTOR_BYTES, SECTOR_BYTES)
    assert cache.unflushed_sectors() == 0  # its turn has come to be stable


class CacheThatForgetsOneSector(WriteCache):
    """The planted bug: the flush leaves the first sector of the latest write out."""

    latest: tuple[int, bytes] | None = None

    def write(self, offset_bytes: int, length_bytes: int) -> memoryview:
        room = super().write(offset_bytes, length_bytes)
        self.latest = offset_bytes, bytes(SECTOR_BYTES)
        return room

    def flush(self) -> None:
        super().flush()
        if self.latest is not None:
            offset_bytes, before = self.latest
            self.latest = None
            super().write(offset_bytes, SECTOR_BYTES)[:] = before


def test_a_flush_that_forgets_one_sector_is_found_out() -> None:
    disk = ModelDisk(CacheThatForgetsOneSector(BOUND_BYTES))
    with pytest.raises(Broken):
        play(disk, [("write", (0, 4)), ("flush",), ("lose power", Keep.NONE, 1)])


def test_a_flush_that_forgets_one_sector_is_found_out_by_chance_too() -> None:
    @given(steps)
    @settings(max_examples=500, deadline=None, database=None, derandomize=True)
    def search(script: list[tuple]) -> None:  # type: ignore[type-arg]
        play(ModelDisk(CacheThatForgetsOneSector(BOUND_BYTES)), script)

    with pytest.raises(Broken):
        search()
