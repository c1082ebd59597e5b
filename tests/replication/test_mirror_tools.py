"""Other people's NBD programs on the Primary's socket: nothing they find is odd, and afterwards both disks are equal.

Each story ends with a demotion and a comparison of the two data areas, and all of them together with DRBD's metadata
tool.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.replication.pair import MIB, Pair, Side, failing_program, pair_below, program, wait_until

SYSTEM_PYTHON = "/usr/bin/python3"
"""Debian's bindings of libnbd belong to Debian's Python."""


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with pair_below(tmp_path_factory.mktemp("pair")) as pair:
        yield pair.begin_equal()


@pytest.fixture
def pair(mirror: Pair) -> Pair:
    """Both up and equal, alpha is Primary."""
    if not all(side.pid for side in mirror.sides):
        mirror.on_both("up")
    mirror.is_equal()
    mirror.promote(mirror.alpha)
    return mirror


@pytest.fixture(params=["alpha", "beta"])
def primary(pair: Pair, request: pytest.FixtureRequest) -> Side:
    """One reads and writes past the page cache, the other does not; each once as Primary."""
    return pair.promote(pair.side(request.param))


def both_disks_are_equal(pair: Pair) -> None:
    pair.demote()
    pair.data_are_equal()


def libnbd(pair: Pair, script: str) -> str:
    """Debian's Python runs the script; `client()` there gives a new connection to the Primary."""
    assert Path("/usr/lib/python3/dist-packages/nbd.py").exists(), "apt-get install python3-libnbd"
    opening = f"""\
import nbd, os

def client():
    handle = nbd.NBD()
    handle.connect_unix({str(pair.alpha.socket)!r})
    return handle

"""
    return program(SYSTEM_PYTHON, "-c", opening + script)


def fio(primary: Side, *options: str) -> None:
    """fio over NBD with checksums in every block, which it reads back in the end."""
    said = program(
        "fio",
        "--name=mirror",
        "--ioengine=nbd",
        f"--uri={primary.uri}",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--verify_dump=0",
        "--verify_state_save=0",
        "--do_verify=1",
        "--allow_mounted_write=0",
        "--randrepeat=1",
        "--output-format=json",
        *options,
    )
    jobs = json.loads(said[said.index("{") :])["jobs"]
    assert all(job["error"] == 0 for job in jobs), said
    assert sum(job["write"]["total_ios"] for job in jobs) > 100, said


def test_nbdinfo_finds_what_was_promised(pair: Pair) -> None:
    export = json.loads(program("nbdinfo", "--json", pair.alpha.uri))["exports"][0]
    wanted = {
        "is_read_only": False,
        "can_flush": True,
        "can_fua": True,
        "can_trim": True,
        "can_zero": True,
        "can_multi_conn": True,
        "is_rotational": False,
    }
    assert {key: export[key] for key in wanted} == wanted
    assert export["export-size"] == pair.alpha.data_bytes
    assert export["export-size"] == pair.alpha.status()["devices"][0]["size"] * 1024
    assert export["block_size_minimum"] == 512
    assert export["block_size_minimum"] <= export["block_size_preferred"] <= export["block_size_maximum"]
    assert export["block_size_maximum"] >= 1 * MIB
    both_disks_are_equal(pair)


def test_there_is_no_socket_on_a_standby(pair: Pair) -> None:
    assert not pair.beta.socket.exists()
    failing_program("nbdinfo", "--json", pair.beta.uri)
    pair.alpha.adm("secondary")
    assert not pair.alpha.socket.exists()
    both_disks_are_equal(pair)


def test_qemu_reads_what_it_wrote_in_every_way_it_knows(pair: Pair) -> None:
    size = pair.alpha.data_bytes
    pair.alpha.qemu_io(
        "write -P 0x11 0 4k",
        "write -P 0x12 512 512",
        "read -P 0x11 0 512",
        "read -P 0x12 512 512",
        "read -P 0x11 1k 3k",
        "writev -P 0x13 1M 4k 8k 512 64k",
        "readv -P 0x13 1M 64k 512 8k 4k",
        "write -f -P 0x14 3M 1M",  # forced unit access
        "read -P 0x14 3M 1M",
        "write -P 0x15 4M 32M",  # larger than a packet may be
        "read -P 0x15 4M 32M",
        "write -z 5M 1M",
        "read -P 0 5M 1M",
        "write -z -u 7M 64k",
        "read -P 0 7M 64k",
        "discard 8M 9M",  # across three extents of the activity log
        "read -P 0 8M 9M",
        "read -P 0x15 17M 1M",
        "discard 20M 512",
        f"write -P 0x16 {size - 4096} 4k",
        f"read -P 0x16 {size - 4096} 4k",
        "flush",
        *(f"aio_write -P {index + 1} {40 * MIB + index * 4096} 4k" for index in range(64)),
        "aio_flush",
        *(f"read -P {index + 1} {40 * MIB + index * 4096} 4k" for index in range(0, 64, 9)),
        "flush",
    )
    failing_program("qemu-io", "-f", "raw", "-c", f"write {size} 4k", pair.alpha.uri)
    both_disks_are_equal(pair)


def test_what_a_client_asks_beyond_the_end_is_an_error_and_nothing_else(pair: Pair) -> None:
    said = libnbd(
        pair,
        """
handle = client()
handle.set_strict_mode(0)
size = handle.get_size()
for request in (
    lambda: handle.pwrite(bytes(1024), size - 512),
    lambda: handle.pread(1024, size - 512),
    lambda: handle.trim(4096, size),
    lambda: handle.zero(4096, size),
    lambda: handle.pread(512, 1 << 60),
):
    try:
        request()
        print("done")
    except nbd.Error as error:
        print(error.errno)
handle.pwrite(b"z" * 512, 0)
print(bytes(handle.pread(512, 0)) == b"z" * 512)
handle.shutdown()
""",
    )
    assert said.split() == ["ENOSPC", "EINVAL", "EINVAL", "ENOSPC", "EINVAL", "True"], said
    both_disks_are_equal(pair)


def test_fua_trim_and_zeroes_do_what_libnbd_means_by_them(pair: Pair) -> None:
    libnbd(
        pair,
        """
handle = client()
KIB = 1024
handle.pwrite(b"a" * 512, 0, nbd.CMD_FLAG_FUA)
handle.pwrite(b"b" * 128 * KIB, 64 * KIB)
handle.trim(64 * KIB, 64 * KIB, nbd.CMD_FLAG_FUA)
assert bytes(handle.pread(64 * KIB, 64 * KIB)) == bytes(64 * KIB)
assert bytes(handle.pread(64 * KIB, 128 * KIB)) == b"b" * 64 * KIB
handle.zero(512, 128 * KIB + 512, nbd.CMD_FLAG_FUA)
handle.zero(4096, 136 * KIB, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
assert bytes(handle.pread(1024, 128 * KIB)) == b"b" * 512 + bytes(512)
assert bytes(handle.pread(4096, 136 * KIB)) == bytes(4096)
assert bytes(handle.pread(512, 140 * KIB)) == b"b" * 512
size = handle.get_size()
handle.zero(size, 0)
for at in range(0, size, 4 << 20):
    length = min(4 << 20, size - at)
    assert bytes(handle.pread(length, at)) == bytes(length), at
handle.pwrite(b"c" * (4 << 20), 3 << 20, nbd.CMD_FLAG_FUA)
handle.trim(3 << 20, 5 << 20)
handle.flush()
handle.shutdown()
""",
    )
    both_disks_are_equal(pair)


def test_a_flush_on_one_connection_covers_the_writes_of_another(pair: Pair) -> None:
    """What MULTI_CONN promises; and what one wrote, all others read."""
    libnbd(
        pair,
        """
clients = [client() for _ in range(4)]
assert all(handle.can_multi_conn() for handle in clients)
for turn in range(32):
    for number, handle in enumerate(clients):
        handle.pwrite(bytes([turn * 4 + number]) * 4096, (turn * 4 + number) * 4096)
    clients[turn % 4].flush()
    for number in range(4):
        at = turn * 4 + number
        assert bytes(clients[3 - number].pread(4096, at * 4096)) == bytes([at]) * 4096
for handle in clients:
    handle.shutdown()
""",
    )

    def nothing_is_pending() -> bool:
        peer = pair.alpha.status()["connections"][0]["peer_devices"][0]
        return bool(peer["pending"] == peer["unacked"] == 0)

    wait_until(nothing_is_pending, "everything is stable on beta")
    both_disks_are_equal(pair)


def test_many_requests_under_way_are_all_answered_once(pair: Pair) -> None:
    """Writes of one block overlap on purpose: whichever is last, it is last on both disks."""
    libnbd(
        pair,
        """
import random
chance = random.Random(7)
handle = client()
waiting = []
for number in range(3000):
    at, length = chance.randrange(64) * 512, chance.choice((512, 1024, 4096))
    kind = chance.random()
    if kind < 0.8:
        flags = nbd.CMD_FLAG_FUA if chance.random() < 0.05 else 0
        cookie = handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([number & 255]) * length), at, flags=flags)
    elif kind < 0.9:
        cookie = handle.aio_zero(length, at)
    elif kind < 0.95:
        cookie = handle.aio_trim(length, at)
    else:
        cookie = handle.aio_flush()
    waiting.append(cookie)
    while len(waiting) > 64:
        handle.poll(-1)
        waiting = [cookie for cookie in waiting if not handle.aio_command_completed(cookie)]
while waiting:
    handle.poll(-1)
    waiting = [cookie for cookie in waiting if not handle.aio_command_completed(cookie)]
handle.flush()
handle.shutdown()
""",
    )
    both_disks_are_equal(pair)


def test_an_image_copied_in_comes_out_as_it_was(pair: Pair, tmp_path: Path) -> None:
    image, copy = tmp_path / "in", tmp_path / "out"
    content = random.Random(1).randbytes(pair.alpha.data_bytes // 2)
    image.write_bytes(content + bytes(pair.alpha.data_bytes - len(content)))
    program("nbdcopy", "--flush", "--connections=4", "--requests=32", image, pair.alpha.uri)
    program("nbdcopy", "--connections=4", pair.alpha.uri, copy)
    program("cmp", image, copy)
    pair.alpha.adm("secondary")
    for side in pair.sides:
        program("cmp", "-n", str(image.stat().st_size), image, side.image)


def test_fio_verifies_random_writes_of_every_size(pair: Pair, primary: Side) -> None:
    fio(
        primary,
        "--rw=randrw",
        "--bssplit=512/20:4k/40:16k/15:68k/15:256k/10",
        "--iodepth=32",
        "--size=24m",
        "--fsync=97",
    )
    both_disks_are_equal(pair)


def test_fio_verifies_over_many_connections(pair: Pair, primary: Side) -> None:
    fio(
        primary,
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=8",
        "--numjobs=4",
        "--size=3m",
        "--offset_increment=12m",
        "--fsync=50",
        "--verify_backlog=64",
    )
    both_disks_are_equal(pair)


def test_fio_verifies_what_it_wrote_over_trimmed_blocks(pair: Pair, primary: Side) -> None:
    fio(
        primary,
        "--rw=randtrimwrite",
        "--bs=16k",
        "--iodepth=16",
        "--size=6m",
    )
    both_disks_are_equal(pair)


def test_drbd_finds_the_metadata_of_both_in_order(pair: Pair) -> None:
    """And what it then has written, if anything, mirrord takes again."""
    pair.alpha.qemu_io("write -P 0x21 9M 5M", "flush")
    pair.is_clean()
    pair.on_both("up")
    pair.is_equal()
    pair.beta.adm("primary")
    pair.beta.qemu_io("read -P 0x21 9M 5M")
    pair.is_clean()
