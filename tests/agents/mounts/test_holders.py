from __future__ import annotations

import pytest

from agents.mounts.holders import (
    Target,
    exports,
    holds_by_descriptor,
    holds_by_memory,
    holds_by_place,
    may_be_ended,
    swap_files,
    target_elsewhere,
)
from agents.mounts.mountinfo import parse
from agents.mounts.search import read_findings
from agents.supervision.belonging import Entry

TABLE = parse(
    "30 1 253:10 / /srv/x rw - ext4 /dev/dm-10 rw\n"
    "31 30 0:9 / /srv/x/in rw - tmpfs tmpfs rw\n"
    "32 1 8:1 / /y rw - ext4 /dev/sda1 rw\n"
)
TARGET = Target(TABLE[:2], ["253:10"])


@pytest.mark.parametrize(
    ("path", "how"),
    [("/srv/x", "cwd"), ("/srv/x/in/a", "cwd"), ("/srv/xy", ""), ("/", ""), ("/srv/x/old (deleted)", "cwd"), ("", "")],
)
def test_a_process_holds_what_it_stands_in(path: str, how: str) -> None:
    assert holds_by_place(TARGET, {"cwd": path, "root": "/", "exe": "/bin/sh"}) == how


@pytest.mark.parametrize(
    ("path", "details", "answer"),
    [
        ("/srv/x/file", "pos:\t0\nflags:\t02\nmnt_id:\t30\nino:\t12\n", True),
        ("/srv/x/file", "pos:\t0\nmnt_id:\t22\n", False),  # hidden beneath our mount, on another file system
        ("/srv/x/file", "", True),  # it may have closed the file while we looked
        ("/srv/other", "mnt_id:\t30\n", False),
        ("socket:[1]", "mnt_id:\t8\n", False),
    ],
)
def test_an_open_file_holds_the_mount_it_was_opened_on(path: str, details: str, answer: bool) -> None:
    assert holds_by_descriptor(TARGET, path, details) == answer


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("7f0-7f1 r-xp 00000000 fd:0a 12 /srv/x/lib.so", True),
        ("7f0-7f1 r-xp 00000000 fd:0a 12 /other/name/in/a/namespace", True),
        ("7f0-7f1 r-xp 00000000 08:01 12 /usr/lib/libc.so", False),
        ("7f0-7f1 rw-p 00000000 00:00 0 ", False),
        ("7f0-7f1 rw-p 00000000 00:00 0                  [heap]", False),
        ("7f0-7f1 r--p 00000000 00:21 7 /srv/x/in/with blank (deleted)", True),
    ],
)
def test_a_mapped_file_holds_it_too(line: str, answer: bool) -> None:
    assert holds_by_memory(TARGET, f"55-56 r-xp 00000000 08:01 9 /bin/sh\n{line}\n") == answer


def test_in_another_namespace_only_the_same_block_device_counts() -> None:
    elsewhere = target_elsewhere(
        parse("90 1 253:10 / /mnt/y rw - ext4 b rw\n91 1 0:9 / /tmp rw - tmpfs tmpfs rw"), ["253:10"]
    )
    assert elsewhere.covers("/mnt/y/file")
    assert not elsewhere.covers("/tmp/file")
    assert elsewhere.identifiers == {90}


@pytest.mark.parametrize(
    ("pid", "parent", "name", "answer"),
    [
        (700, 1, "postgres", True),
        (1, 0, "init", False),
        (500, 400, "agent", False),
        (400, 1, "sh", False),
        (60, 2, "kworker/0:1", False),
        (2, 0, "kthreadd", False),
        (701, 1, "pacemaker-contr", False),
        (702, 1, "corosync", False),
        (703, 1, "nbdfuse", False),
    ],
)
def test_init_kernel_threads_the_callers_and_the_manager_are_never_ended(
    pid: int, parent: int, name: str, answer: bool
) -> None:
    assert may_be_ended(Entry(pid, parent, pid, pid, 5, name), frozenset((1, 400, 500))) == answer


def test_swap_files_and_exports_hold_without_a_process() -> None:
    swaps = "Filename\tType\tSize\tUsed\tPriority\n/srv/x/swap\\040one file 1 0 -2\n/dev/sda2 partition 1 0 -3\n"
    assert swap_files(swaps, TARGET) == ["/srv/x/swap one"]
    shared = "# Version 1.1\n/srv/x/pub\t*(rw,sync)\n/home\t*(ro)\n"
    assert exports(shared, TARGET) == ["/srv/x/pub"]


def test_a_search_that_was_cut_off_still_counts_up_to_its_last_whole_line() -> None:
    text = "holder 12 1 99 S data base\nspared 1 0 3 S init\nkernel swap file /x\nnamespace 40 (runc)\nholder 77 1 9"
    found = read_findings(text)
    assert [(entry.pid, entry.start_ticks, entry.name) for entry in found.holders] == [(12, 99, "data base")]
    assert [entry.pid for entry in found.spared] == [1]
    assert (found.kernel, found.namespaces) == (["swap file /x"], ["40 (runc)"])
