"""The device an application sees: file systems on /dev/mirrorha/NAME/0, and what becomes of them when things die."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.replication.pair import Pair, failing_program, pair_below, program, wait_until

REFUSED = 11
MAKE = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f")}
CHECK = {"ext4": ("fsck.ext4", "-f", "-n"), "xfs": ("xfs_repair", "-n")}
"""They change nothing and succeed when there is nothing to change."""


@pytest.fixture
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Equal, and alpha offers its device. 320 MiB: XFS wants no less than 300."""
    with pair_below(tmp_path_factory.mktemp("pair"), size_mib=320, device="auto") as pair:
        pair.begin_equal().alpha.adm("primary")
        assert pair.alpha.device.is_block_device()
        yield pair


@contextlib.contextmanager
def mounted(pair: Pair, kind: str, place: Path) -> Iterator[Path]:
    """The directory, from outside of the mount namespace it is mounted in.

    A laboratory that starts meanwhile copies all mounts that it finds, and would hold the device until it ends.
    """
    place.mkdir(exist_ok=True)
    script = 'mount -t "$1" "$2" "$3" && echo done && exec cat'
    namespace = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script, "sh", kind, str(pair.alpha.device), str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert namespace.stdout is not None
        assert namespace.stdout.readline() == b"done\n"
        yield Path(f"/proc/{namespace.pid}/root{place}")
        program("nsenter", "--target", str(namespace.pid), "--mount", "umount", place)
    finally:
        namespace.kill()
        namespace.communicate()


def fio_command(place: Path, *options: str) -> list[str]:
    return [
        "fio",
        "--name=files",
        "--thread",  # a job of its own process would outlive a fio that is killed
        "--verify_state_save=0",
        f"--directory={place}",
        "--rw=randrw",
        "--bssplit=512/10:4k/50:20k/20:128k/20",
        "--ioengine=libaio",
        "--iodepth=16",
        "--nrfiles=4",
        "--size=24m",
        "--fsync=64",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--do_verify=1",
        "--output-format=json",
        *options,
    ]


def no_errors(said: str) -> None:
    jobs = json.loads(said[said.index("{") :])["jobs"]
    assert all(job["error"] == 0 for job in jobs), said


@pytest.mark.parametrize("kind", MAKE)
def test_a_file_system_lives_on_both_disks(pair: Pair, kind: str, tmp_path: Path) -> None:
    alpha, beta = pair.sides
    program(*MAKE[kind], alpha.device)
    with mounted(pair, kind, tmp_path / "mnt") as place:
        no_errors(program(*fio_command(place)))
        (place / "letter").write_text("dear beta")
        for verb in ("secondary", "down"):
            said = alpha.refused(REFUSED, verb)
            assert f"mounted at {tmp_path / 'mnt'}" in said
        program("fstrim", place)
    program(*CHECK[kind], alpha.device)
    alpha.adm("secondary")
    assert not pair.remains()
    pair.data_are_equal()
    beta.adm("primary")
    with mounted(pair, kind, tmp_path / "mnt") as place:
        assert (place / "letter").read_text() == "dear beta"
    program(*CHECK[kind], beta.device)
    pair.is_clean()
    assert not pair.remains()


@pytest.mark.parametrize("kind", MAKE)
def test_mirrord_dies_under_a_file_system_which_is_whole_after_its_replay(
    pair: Pair, kind: str, tmp_path: Path
) -> None:
    alpha = pair.alpha
    program(*MAKE[kind], alpha.device)
    with mounted(pair, kind, tmp_path / "mnt") as place:
        (place / "kept").write_text("synchronised")
        program("sync", "-f", place)
        with under_load(place):
            alpha.kill()
            wait_until(lambda: not alpha.device.exists(), "the device dies with its mirrord")
        assert "Input/output error" in failing_program("sync", "-f", place)
    wait_until(lambda: not pair.remains(), f"nothing stays attached: {pair.remains()}")
    pair.beta.becomes("Secondary", "Connecting", "UpToDate")
    alpha.adm("up")
    pair.is_equal()
    alpha.adm("primary")
    with mounted(pair, kind, tmp_path / "mnt") as place:
        assert (place / "kept").read_text() == "synchronised"
    program(*CHECK[kind], alpha.device)
    pair.is_clean()


@contextlib.contextmanager
def under_load(place: Path) -> Iterator[subprocess.Popen[str]]:
    """fio that has begun to write; how it ends does not matter."""
    command = fio_command(place, "--time_based", "--runtime=60", "--rw=randwrite", "--do_verify=0", "--verify=0")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    try:
        wait_until(lambda: any(file.stat().st_blocks for file in place.glob("files.*")), "fio writes")
        yield process
    finally:
        process.kill()
        process.wait(30)


def test_an_application_does_not_notice_the_loss_of_the_standby(pair: Pair, tmp_path: Path) -> None:
    alpha, beta = pair.sides
    program(*MAKE["ext4"], alpha.device)
    with mounted(pair, "ext4", tmp_path / "mnt") as place:
        fio = subprocess.Popen(fio_command(place, "--loops=3"), stdout=subprocess.PIPE, text=True)
        try:
            wait_until(lambda: any(file.stat().st_blocks for file in place.glob("files.*")), "fio writes")
            beta.kill()
            alpha.becomes("Primary", "Connecting", "UpToDate")
            beta.adm("up")
            said, _ = fio.communicate(timeout=90)
        finally:
            fio.kill()
            fio.wait(30)
        assert fio.returncode == 0, said
        no_errors(said)
    pair.is_equal()
    assert "SyncTarget" in beta.log()
    alpha.adm("secondary")
    pair.data_are_equal()
    pair.is_clean()


def test_a_mirrord_that_hangs_is_taken_down_within_the_deadline_and_leaves_nothing(pair: Pair) -> None:
    alpha = pair.alpha
    program(*MAKE["ext4"], alpha.device)
    alpha.signal(signal.SIGSTOP)
    began = time.monotonic()
    done = alpha.run("down", pair.name, "--force", "-t", "6")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 8
    assert "killed its mirrord" in done.stderr
    assert alpha.pid is None
    wait_until(lambda: not pair.remains(), f"nothing stays: {pair.remains()}")
    alpha.adm("up")
    pair.is_equal()
    alpha.adm("primary")
    program(*CHECK["ext4"], alpha.device)
    pair.is_clean()
