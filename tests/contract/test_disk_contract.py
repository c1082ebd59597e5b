"""The file, the block device and the simulated disk keep the same promises, or the simulation proves nothing."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replication.attendant import Absence
from replication.backing_device import BackingDevice, BackingMode, DiskReports
from replication.loop import Loop
from tests.simulation.disk import SimulatedDisk

DATA_BYTES = 8 << 20
CAPACITY_BYTES = DATA_BYTES + (1 << 20)
BLOCK = 4096
DEADLINE_S = 10


class RealBench:
    """A file or device, all zeroes, whose data area has DATA_BYTES and which takes metadata behind it."""

    def __init__(self, path: Path, mode: BackingMode) -> None:
        self.flushed: list[int] = []
        self.failures: list[str] = []
        self.loop = Loop()
        self.disk = BackingDevice(
            path,
            mode,
            DiskReports(
                self.loop.call_soon_threadsafe,
                self.flushed.extend,
                lambda requests: None,
                lambda effect, fact: self.failures.append(fact),
            ),
            Absence(),
        )
        self.disk.limit_data(DATA_BYTES)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline
            self.loop.run_once(0.05)

    def metadata(self, offset: int, length: int) -> bytes:
        return self.disk.read_metadata(offset, length)

    def close(self) -> None:
        self.disk.close()
        self.loop.close()


class SimulatedBench:
    def __init__(self) -> None:
        self.flushed: list[int] = []
        self.disk = self.simulated = SimulatedDisk(CAPACITY_BYTES, random.Random(1))
        self.started: list[int] = []
        self.simulated.flush_started = self.started.append

    def wait_until(self, condition: Callable[[], bool]) -> None:
        while self.started and not condition():
            token = self.started.pop(0)
            self.simulated.finish_flush(token)
            self.flushed.append(token)
        assert condition()

    def metadata(self, offset: int, length: int) -> bytes:
        return self.simulated.content(offset, length)

    def close(self) -> None:
        pass


Bench = RealBench | SimulatedBench


def image(directory: Path) -> Path:
    path = directory / "disk.img"
    with open(path, "wb") as file:
        file.truncate(CAPACITY_BYTES)
    return path


@pytest.fixture(params=["buffered file", "direct file", "buffered device", "direct device", "simulated"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if request.param == "simulated":
        yield SimulatedBench()
        return
    mode, kind = request.param.split()
    path, loop_device = image(tmp_path), ""
    if kind == "device":
        made = subprocess.run(["losetup", "--find", "--show", path], check=True, capture_output=True, text=True)
        loop_device = made.stdout.strip()
    try:
        real = RealBench(Path(loop_device or path), BackingMode(mode))
        try:
            yield real
        finally:
            real.close()
    finally:
        if loop_device:
            subprocess.run(["losetup", "--detach", loop_device], check=True)


def test_what_was_written_is_read(bench: Bench) -> None:
    bench.disk.write([(BLOCK, b"a" * BLOCK)])
    assert bytes(bench.disk.read(0, 3 * BLOCK)) == bytes(BLOCK) + b"a" * BLOCK + bytes(BLOCK)


def test_neighbours_gaps_and_unaligned_memory_all_arrive(bench: Bench) -> None:
    source = memoryview(random.Random(3).randbytes(64 * BLOCK + 7))
    places = [0, 1, 2, 3, 9, 10, 40, 41, 42, 20]
    writes = [(place * BLOCK, source[7 + i * BLOCK : 7 + (i + 1) * BLOCK]) for i, place in enumerate(places)]
    bench.disk.write([(offset, data) for offset, data in writes])
    for offset, data in writes:
        assert bytes(bench.disk.read(offset, BLOCK)) == data
    assert bytes(bench.disk.read(4 * BLOCK, 5 * BLOCK)) == bytes(5 * BLOCK)


def test_where_writes_of_one_list_overlap_the_later_one_wins(bench: Bench) -> None:
    bench.disk.write([(0, b"1" * 4 * BLOCK), (BLOCK, b"2" * 2 * BLOCK), (2 * BLOCK, b"3" * BLOCK)])
    assert bytes(bench.disk.read(0, 4 * BLOCK)) == b"1" * BLOCK + b"2" * BLOCK + b"3" * BLOCK + b"1" * BLOCK


def test_a_sector_is_written_without_its_neighbours(bench: Bench) -> None:
    bench.disk.write([(0, b"x" * BLOCK)])
    bench.disk.write([(512, b"s" * 512), (3 * 512, b"t" * 512)])
    expected = b"".join(kind * 512 for kind in (b"x", b"s", b"x", b"t", b"x", b"x", b"x", b"x"))
    assert bytes(bench.disk.read(0, BLOCK)) == expected
    assert bytes(bench.disk.read(512, 512)) == b"s" * 512


def test_large_writes_and_reads_are_whole(bench: Bench) -> None:
    content = random.Random(4).randbytes(3 << 20)
    bench.disk.write([(512, content)])
    assert bytes(bench.disk.read(512, len(content))) == content
    assert bytes(bench.disk.read(512 + len(content), 512)) == bytes(512)


def test_hundreds_of_writes_in_one_list(bench: Bench) -> None:
    rng = random.Random(5)
    blocks = rng.sample(range(DATA_BYTES // BLOCK), 1500)
    content = {block: rng.randbytes(BLOCK) for block in [*range(1100), *blocks]}
    bench.disk.write([(block * BLOCK, data) for block, data in content.items()])
    assert all(bytes(bench.disk.read(block * BLOCK, BLOCK)) == data for block, data in content.items())


@pytest.mark.parametrize("may_unmap", [True, False], ids=["unmap", "keep"])
@pytest.mark.parametrize(("offset", "length"), [(BLOCK, BLOCK), (512, 1536), (0, DATA_BYTES), (512, (2 << 20) + 512)])
def test_what_was_zeroed_reads_as_zeroes_and_nothing_else_does(
    bench: Bench, offset: int, length: int, may_unmap: bool
) -> None:
    bench.disk.write([(0, b"x" * DATA_BYTES)])
    bench.disk.zero(offset, length, may_unmap)
    after = DATA_BYTES - offset - length
    assert bytes(bench.disk.read(0, DATA_BYTES)) == b"x" * offset + bytes(length) + b"x" * after


def test_every_flush_is_answered_once(bench: Bench) -> None:
    for token in range(20):
        bench.disk.write([(token * BLOCK, b"f" * BLOCK)])
        bench.disk.start_flush(token)
    bench.wait_until(lambda: len(bench.flushed) >= 20)
    assert bench.flushed == list(range(20))


def test_metadata_is_written_where_it_was_said_and_data_stays(bench: Bench) -> None:
    bench.disk.write([(DATA_BYTES - BLOCK, b"d" * BLOCK)])
    bench.disk.persist("superblock", [(DATA_BYTES, b"m" * BLOCK), (CAPACITY_BYTES - BLOCK, b"s" * BLOCK)])
    assert bench.metadata(DATA_BYTES, BLOCK) == b"m" * BLOCK
    assert bench.metadata(CAPACITY_BYTES - BLOCK, BLOCK) == b"s" * BLOCK
    assert bytes(bench.disk.read(DATA_BYTES - BLOCK, BLOCK)) == b"d" * BLOCK


def test_what_is_read_stays_as_it_was(bench: Bench) -> None:
    bench.disk.write([(0, b"1" * BLOCK)])
    before = bench.disk.read(0, BLOCK)
    bench.disk.write([(0, b"2" * BLOCK)])
    bench.disk.read(0, BLOCK)
    assert bytes(before) == b"1" * BLOCK


def test_the_same_random_story_has_the_same_end(bench: Bench) -> None:
    rng = random.Random(6)
    model = bytearray(DATA_BYTES)
    for _ in range(150):
        offset = rng.randrange(DATA_BYTES // 512) * 512
        length = min(rng.choice([512, 4096, 8192, 131072]), DATA_BYTES - offset)
        if rng.random() < 0.2:
            bench.disk.zero(offset, length, rng.random() < 0.5)
            model[offset : offset + length] = bytes(length)
        else:
            data = rng.randbytes(length)
            bench.disk.write([(offset, data)])
            model[offset : offset + length] = data
    assert bytes(bench.disk.read(0, DATA_BYTES)) == model


def test_reaching_beyond_the_disk_is_our_bug(bench: Bench) -> None:
    with pytest.raises(AssertionError):
        bench.disk.read(CAPACITY_BYTES, BLOCK)
    with pytest.raises(AssertionError):
        bench.disk.write([(CAPACITY_BYTES, bytes(BLOCK))])
