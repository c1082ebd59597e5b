"""Records and processes of earlier actions: hints that cannot mislead."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.ocf.process import Process, start_ticks
from agents.ocf.state import Record, boot_id


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), st.text(max_size=30), max_size=5))
def test_what_was_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, pairs: dict[str, str]) -> None:
    pairs = {key: value.encode("utf-8", "replace").decode() for key, value in pairs.items() if key != "boot_id"}
    record = Record(str(tmp_path_factory.getbasetemp()), "VirtualIP-p1-claim")
    record.write(pairs)
    assert record.read() == pairs


def test_a_record_of_another_boot_counts_as_absent(tmp_path: Path) -> None:
    record = Record(str(tmp_path), "x")
    record.write({"a": "1"})
    path = tmp_path / "x"
    path.write_text(path.read_text().replace(boot_id(), "earlier"))
    assert record.read() == {}


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0", b"a", b"boot_id", b"=\n=\n"])
def test_a_damaged_record_counts_as_absent(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert Record(str(tmp_path), "x").read() == {}


def test_a_name_cannot_leave_the_directory(tmp_path: Path) -> None:
    assert Record(str(tmp_path), "VirtualIP-../../etc/x").path == f"{tmp_path}/VirtualIP-.._.._etc_x"


def test_a_record_is_replaced_whole_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    record = Record(str(tmp_path), "x")
    record.write({"a": "1"})
    record.write({"b": "2"})
    assert record.read() == {"b": "2"}
    assert os.listdir(tmp_path) == ["x"]
    record.remove()
    record.remove()
    assert os.listdir(tmp_path) == []


def test_the_writer_makes_a_missing_directory_and_the_reader_does_not_mind(tmp_path: Path) -> None:
    record = Record(str(tmp_path / "made"), "x")
    assert record.read() == {}
    record.write({"a": "1"})
    assert record.read() == {"a": "1"}
    with pytest.raises(FileNotFoundError):
        Record(str(tmp_path / "none" / "deeper"), "x").write({})


def test_a_process_is_recognised_until_it_ends_even_as_a_zombie() -> None:
    child = subprocess.Popen(["sleep", "60"])
    known = Process.of(child.pid)
    assert known is not None
    again = Process.parse(str(known))
    assert again is not None
    assert again.alive()
    assert again.send(signal.SIGKILL)
    end = time.monotonic() + 5
    while again.alive() and time.monotonic() < end:
        os.sched_yield()
    assert not again.alive()  # not waited for yet: a zombie
    assert not again.send(signal.SIGKILL)
    child.wait()
    assert Process.of(child.pid) is None


def test_a_signal_never_reaches_another_process_that_got_the_same_pid() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        ticks = start_ticks(child.pid)
        assert ticks is not None
        stranger = Process(child.pid, ticks - 1, boot_id())
        assert not stranger.alive()
        assert not stranger.send(signal.SIGKILL)
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("text", ["", "1 2", "x y z", "1 5 b", "0 5 b", "-4 5 b", "12 x b"])
def test_what_names_no_process_is_refused(text: str) -> None:
    assert Process.parse(text) is None
