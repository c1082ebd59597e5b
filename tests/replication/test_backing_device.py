"""What the disk port's contract (tests/contract) does not say: opening, failures, and what is reported from threads."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from replication.attendant import Absence
from replication.backing_device import BackingDevice, BackingMode, DiskReports
from replication.flusher import Flusher
from replication.loop import Loop
from replication.protocol.effects import Effect, FlushData, ReadForClients
from replication.protocol.errors import DiskFailure, MirrorError
from replication.protocol.requests import EIO, READ, Request

CAPACITY_BYTES = 8 << 20
DEADLINE_S = 10


class User:
    """A loop, and all that a disk reports to it."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.absence = Absence()
        self.flushed: list[list[int]] = []
        self.answered: list[Request] = []
        self.failures: list[tuple[Effect, str]] = []
        self.reports = DiskReports(
            self.loop.call_soon_threadsafe,
            self.flushed.append,
            self.answered.extend,
            lambda effect, fact: self.failures.append((effect, fact)),
        )

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline
            self.loop.run_once(0.05)

    @contextmanager
    def disk(self, path: Path, mode: BackingMode = BackingMode.BUFFERED) -> Iterator[BackingDevice]:
        device = BackingDevice(path, mode, self.reports, self.absence)
        try:
            device.limit_data(device.capacity_bytes)
            yield device
        finally:
            device.close()


@pytest.fixture
def user() -> Iterator[User]:
    user = User()
    yield user
    user.loop.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(CAPACITY_BYTES))
    return path


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def thin_disk(tmp_path: Path) -> Iterator[Path]:
    """A block device that promises 16 MiB and can keep 2."""
    with ExitStack() as undo:
        shelf = tmp_path / "shelf"
        shelf.mkdir()
        run("mount", "-t", "tmpfs", "-o", "size=2m", "thin", shelf)
        undo.callback(run, "umount", shelf)
        with open(shelf / "thin.img", "wb") as file:
            file.truncate(16 << 20)
        device = run("losetup", "--find", "--show", shelf / "thin.img")
        undo.callback(run, "losetup", "--detach", device)
        yield Path(device)


def read_request(offset: int, length: int) -> Request:
    return Request("client", READ, 0, 1, offset, length)


# opening


def test_a_disk_that_is_not_there_is_named(user: User, tmp_path: Path) -> None:
    with pytest.raises(MirrorError, match=r"disk .*/nowhere: cannot be opened: No such file or directory; check"):
        BackingDevice(tmp_path / "nowhere", BackingMode.BUFFERED, user.reports, user.absence)


def test_a_directory_is_no_disk(user: User, tmp_path: Path) -> None:
    with pytest.raises(MirrorError, match="neither a block device nor a file"):
        BackingDevice(tmp_path, BackingMode.BUFFERED, user.reports, user.absence)


@pytest.mark.parametrize("mode", BackingMode)
def test_a_file_serves_one_mirror_only_and_is_free_after_it(user: User, image: Path, mode: BackingMode) -> None:
    with (
        user.disk(image, mode),
        pytest.raises(MirrorError, match=r"in use by another process; see who has it: fuser"),
        User().disk(image, mode),
    ):
        pass
    with user.disk(image, mode):
        pass


def test_a_block_device_serves_one_mirror_only(user: User, thin_disk: Path) -> None:
    with user.disk(thin_disk), pytest.raises(MirrorError, match="Device or resource busy; it is mounted, or in use"):
        BackingDevice(thin_disk, BackingMode.BUFFERED, user.reports, Absence())


def test_a_refused_disk_leaves_nothing_open(user: User, image: Path) -> None:
    with user.disk(image):
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(MirrorError):
            BackingDevice(image, BackingMode.DIRECT, user.reports, Absence())
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_disk_smaller_than_its_metadata_says_is_refused(user: User, image: Path) -> None:
    with user.disk(image) as disk, pytest.raises(MirrorError, match="it was made smaller"):
        disk.limit_data(CAPACITY_BYTES + 4096)


def test_a_disk_that_shrinks_in_use_is_a_failure(user: User, image: Path) -> None:
    with user.disk(image) as disk:
        disk.check_capacity()
        os.truncate(image, CAPACITY_BYTES // 2)
        with pytest.raises(DiskFailure, match=f"shrank from {CAPACITY_BYTES} to {CAPACITY_BYTES // 2} bytes"):
            disk.check_capacity()
        with pytest.raises(DiskFailure, match="became smaller"):
            disk.read(CAPACITY_BYTES - 4096, 4096)


def test_data_never_reaches_the_metadata_nor_the_reverse(user: User, image: Path) -> None:
    with user.disk(image) as disk:
        disk.limit_data(CAPACITY_BYTES // 2)
        with pytest.raises(AssertionError):
            disk.write([(CAPACITY_BYTES // 2 - 512, bytes(1024))])
        with pytest.raises(AssertionError):
            disk.persist("bitmap", [(CAPACITY_BYTES // 2 - 512, bytes(1024))])


# clients' reads


@pytest.mark.parametrize("mode", BackingMode)
def test_clients_get_what_was_written(user: User, image: Path, mode: BackingMode) -> None:
    with user.disk(image, mode) as disk:
        disk.write([(at, bytes([at >> 12]) * 4096) for at in range(0, 65536, 4096)])
        disk.read_for_clients([read_request(at, 4096) for at in range(0, 65536, 4096)])
        user.until(lambda: len(user.answered) == 16)
    assert all(bytes(request.data or b"") == bytes([request.offset >> 12]) * 4096 for request in user.answered)


def test_what_the_page_cache_has_is_answered_at_once(user: User, image: Path) -> None:
    with user.disk(image) as disk:
        disk.write([(0, b"w" * 8192)])
        disk.read_for_clients([read_request(0, 8192)])
        assert [bytes(request.data or b"") for request in user.answered] == [b"w" * 8192]


def test_what_it_has_not_is_answered_by_the_loop_later(user: User, image: Path) -> None:
    image.write_bytes(b"c" * CAPACITY_BYTES)
    with open(image, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with user.disk(image) as disk:
        disk.read_for_clients([read_request(4 << 20, 4096)])
        assert user.answered == []
        user.until(lambda: bool(user.answered))
        assert bytes(user.answered[0].data or b"") == b"c" * 4096


@pytest.mark.parametrize("mode", BackingMode)
def test_a_read_that_fails_is_answered_with_an_error_and_reported(user: User, image: Path, mode: BackingMode) -> None:
    with user.disk(image, mode) as disk:
        os.truncate(image, 0)
        request = read_request(4096, 4096)
        disk.read_for_clients([request])
        user.until(lambda: bool(user.answered and user.failures))
    assert user.answered == [request]
    assert request.error == EIO
    effect, fact = user.failures[0]
    assert isinstance(effect, ReadForClients)
    assert "read of 4096 bytes at 4096 failed: the disk ends at 4096" in fact


# flushes and failures


def test_a_disk_that_lies_about_its_room_fails_at_the_flush_and_is_not_asked_again(user: User, thin_disk: Path) -> None:
    with user.disk(thin_disk) as disk:
        disk.write([(0, b"x" * (8 << 20))])
        disk.start_flush(7)
        user.until(lambda: bool(user.failures))
        assert user.flushed == []
        effect, fact = user.failures[0]
        assert effect == FlushData(7)
        assert "flush failed" in fact
        with pytest.raises(DiskFailure, match="an earlier one failed"):
            disk.start_flush(8)


@pytest.mark.parametrize("mode", BackingMode)
def test_a_write_that_must_be_durable_fails_at_once(user: User, thin_disk: Path, mode: BackingMode) -> None:
    with user.disk(thin_disk, mode) as disk:
        disk.limit_data(8 << 20)
        with pytest.raises(DiskFailure, match="write of bitmap failed"):
            disk.persist("bitmap", [(8 << 20, b"x" * (6 << 20))])


def test_past_the_page_cache_a_failed_write_is_known_at_once(user: User, thin_disk: Path) -> None:
    with user.disk(thin_disk, BackingMode.DIRECT) as disk, pytest.raises(DiskFailure, match="write at 0 failed"):
        disk.write([(at, b"x" * (1 << 20)) for at in range(0, 16 << 20, 2 << 20)])


def test_flushes_that_were_asked_for_meanwhile_share_the_next() -> None:
    reported: list[list[int]] = []
    arrived, go_on = threading.Event(), threading.Event()

    def flushed(tokens: list[int]) -> None:
        reported.append(tokens)
        arrived.set()
        go_on.wait(DEADLINE_S)

    with open("/dev/shm", "rb", buffering=0, opener=lambda path, _: os.open(path, os.O_TMPFILE | os.O_RDWR)) as file:
        flusher = Flusher(file.fileno(), flushed, lambda tokens, error: None)
        flusher.start(1)
        assert arrived.wait(DEADLINE_S)
        for token in (2, 3, 4):
            flusher.start(token)
        arrived.clear()
        go_on.set()
        assert arrived.wait(DEADLINE_S)
        assert flusher.close(DEADLINE_S)
    assert reported == [[1], [2, 3, 4]]


def test_nobody_waits_for_a_disk_that_is_idle(user: User, image: Path) -> None:
    with user.disk(image) as disk:
        disk.write([(0, b"x" * 4096)])
        assert disk.blocked_since is None
        with user.absence:
            assert disk.blocked_since is not None


def test_a_closed_disk_leaves_no_thread(user: User, image: Path) -> None:
    before = threading.active_count()
    for mode in BackingMode:
        with user.disk(image, mode) as disk:
            disk.write([(at, b"x" * 4096) for at in range(0, 65536, 8192)])
            disk.start_flush(1)
    assert threading.active_count() == before
