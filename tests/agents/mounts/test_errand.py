"""Errands with real children, which all end at once."""

from __future__ import annotations

import os
import time

import pytest

from agents.mounts.errand import program, run


def nothing(pid: int) -> None:
    return


def test_a_child_says_how_it_ended_and_what_it_printed() -> None:
    outcome = run(program("/bin/sh", "-c", "echo first; echo last >&2; exit 3"), nothing, 10)
    assert (outcome.code, outcome.first_line, outcome.last_line, outcome.stuck_pid) == (3, "first", "last", 0)
    assert run(lambda: None, nothing, 10).is_good


def test_an_error_of_the_system_is_told_in_words() -> None:
    def fail() -> None:
        os.stat("/no/such/file")

    outcome = run(fail, nothing, 10)
    assert (outcome.code, outcome.last_line) == (1, "No such file or directory (/no/such/file)")


def test_who_does_not_end_in_time_is_killed_and_what_it_said_is_kept() -> None:
    begin = time.monotonic()
    outcome = run(program("/bin/sh", "-c", "echo said; exec sleep 60"), nothing, 0.3)
    assert (outcome.code, outcome.output, outcome.stuck_pid) == (None, "said\n", 0)
    assert time.monotonic() - begin < 2


def test_nothing_is_done_that_could_not_be_written_down() -> None:
    def refuse(pid: int) -> None:
        raise OSError("disk full")

    marker = f"/tmp/mirrorha-errand-{os.getpid()}"
    with pytest.raises(OSError, match="disk full"):
        run(program("/bin/touch", marker), refuse, 10)
    assert not os.path.exists(marker)


def test_a_child_keeps_no_descriptor_of_the_agent() -> None:
    reader, writer = os.pipe()
    try:
        outcome = run(program("/bin/sh", "-c", "ls /proc/self/fd; readlink /proc/self/fd/0"), nothing, 10)
        assert outcome.output.split() == ["0", "1", "2", "3", "/dev/null"]  # 3 is ls looking
    finally:
        os.close(reader)
        os.close(writer)
