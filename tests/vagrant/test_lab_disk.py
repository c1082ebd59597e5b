"""A file system on a node's disk: what fsync promised is there after power cuts, and fsck agrees."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator

import pytest

from vagrant.namespaces.lab import Lab

pytestmark = pytest.mark.lab
ROUNDS = 5
RECORDS = 20
"""Acknowledged before each cut; the writer goes on, so that the cut meets it at work."""

WRITER = """
import os, sys
number = int(sys.argv[1])
while True:
    path = f"/mnt/record-{number}"
    with open(path + ".new", "wb") as record:
        record.write((b"%08d" % number) * 1024)
        record.flush()
        os.fsync(record.fileno())
    os.rename(path + ".new", path)
    directory = os.open("/mnt", os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    print(number, flush=True)
    number += 1
"""
READER = """
import os, sys
bad = [n for n in range(int(sys.argv[1]) + 1) if open(f"/mnt/record-{n}", "rb").read() != (b"%08d" % n) * 1024]
print(bad)
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def wait_for_disk(lab: Lab, node: str = "alpha") -> None:
    deadline = time.monotonic() + 10
    while lab.run(node, ["test", "-b", "/dev/vdb"]).returncode != 0:
        assert time.monotonic() < deadline, f"{node} has no /dev/vdb; its /var/log/boot.log says why"
        time.sleep(0.01)


def must(lab: Lab, *argv: str) -> str:
    done = lab.run("alpha", [*argv])
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def make_file_system(lab: Lab) -> None:
    wait_for_disk(lab)
    must(lab, "mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", "/dev/vdb")


def test_what_fsync_acknowledged_on_ext4_survives_power_cuts_and_fsck_finds_nothing(lab: Lab) -> None:
    make_file_system(lab)
    acknowledged = -1
    for _ in range(ROUNDS):
        must(lab, "mount", "/dev/vdb", "/mnt")
        with lab.popen(
            "alpha", ["python3", "-c", WRITER, str(acknowledged + 1)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            for _ in range(RECORDS):
                acknowledged = int(writer.stdout.readline())
            lab.power_cut("alpha")
            for line in writer.stdout:  # what came out before the cut is acknowledged, whoever reads it
                acknowledged = int(line)
        lab.power_on("alpha")
        wait_for_disk(lab)
        # the journal is replayed by the mount, as after any power cut; only then the structure must be clean
        must(lab, "mount", "/dev/vdb", "/mnt")
        assert must(lab, "python3", "-c", READER, str(acknowledged)) == "[]\n"
        must(lab, "umount", "/mnt")
        must(lab, "fsck.ext4", "-fn", "/dev/vdb")
    assert lab.disk("alpha", "state")["power_losses"] == ROUNDS
    assert acknowledged >= ROUNDS * RECORDS - 1


def test_a_full_disk_refuses_new_blocks_and_serves_what_it_has(lab: Lab) -> None:
    """As a thin volume whose pool is full: ext4 loses its journal over it, and nothing that fsync had promised."""
    make_file_system(lab)
    must(lab, "mount", "/dev/vdb", "/mnt")
    must(lab, "dd", "if=/dev/urandom", "of=/mnt/old", "bs=1M", "count=4", "conv=fsync")
    checksum = must(lab, "md5sum", "/mnt/old")
    lab.disk("alpha", "full")
    refused = lab.run("alpha", ["dd", "if=/dev/urandom", "of=/mnt/new", "bs=1M", "count=8", "conv=fsync"])
    assert refused.returncode == 1
    assert "No space left on device" in refused.stderr
    must(lab, "dd", "if=/mnt/old", "of=/dev/null", "bs=1M", "iflag=direct")
    must(lab, "umount", "/mnt")
    lab.disk("alpha", "ok")
    assert lab.run("alpha", ["fsck.ext4", "-fp", "/dev/vdb"]).returncode in (0, 1)  # 1: corrected, as after an abort
    must(lab, "fsck.ext4", "-fn", "/dev/vdb")
    must(lab, "mount", "/dev/vdb", "/mnt")
    assert must(lab, "md5sum", "/mnt/old") == checksum
    must(lab, "dd", "if=/dev/urandom", "of=/mnt/new", "bs=1M", "count=8", "conv=fsync")


def test_a_power_cut_ends_a_node_whose_disk_hangs_and_no_loop_device_stays(lab: Lab) -> None:
    make_file_system(lab)
    must(lab, "mount", "/dev/vdb", "/mnt")
    loop = must(lab, "readlink", "/dev/vdb").strip()
    lab.disk("alpha", "hang")
    with lab.popen("alpha", ["dd", "if=/dev/zero", "of=/mnt/stuck", "bs=1M", "count=4", "conv=fsync"]) as stuck:
        with contextlib.suppress(subprocess.TimeoutExpired):
            stuck.wait(0.3)
        assert stuck.poll() is None
        start = time.monotonic()
        lab.power_cut("alpha")
        assert time.monotonic() - start < 5
    deadline = time.monotonic() + 5
    while f"{loop} " in subprocess.run(["losetup", "--noheadings", "-l", "-O", "NAME"], capture_output=True, text=True,
                                       check=True).stdout.replace("\n", " \n"):  # fmt: skip
        assert time.monotonic() < deadline, f"{loop} outlives the node that used it"
        time.sleep(0.01)
    lab.disk("alpha", "ok")
    lab.power_on("alpha")
    wait_for_disk(lab)
    must(lab, "mount", "/dev/vdb", "/mnt")
