"""The front end over a volume that is a piece of memory: with the clients people use, and with ill-behaved ones."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from replication.errors import MirrorError
from replication.frontend import CLIENTS_MAX, UNSENT_BYTES_MAX, Opener
from replication.loop import Loop
from replication.protocol.nbd import PAYLOAD_BYTES_MAX
from replication.protocol.requests import (
    DISCONNECT,
    EINVAL,
    EIO,
    ESHUTDOWN,
    FLAG_FUA,
    FLUSH,
    READ,
    TRIM,
    WRITE,
    WRITE_ZEROES,
)
from tests.replication.memory_device import MIB, SIZE, MemoryDevice, RawClient, header, write


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[MemoryDevice]:
    loop = Loop()
    memory = MemoryDevice(loop, tmp_path / "nbd")
    memory.frontend.start()
    yield memory
    memory.frontend.close()
    loop.close()


# the clients people use


def test_nbdinfo_reads_what_the_export_is(memory: MemoryDevice) -> None:
    found = json.loads(memory.run("nbdinfo", "--json", memory.uri))
    (export,) = found["exports"]
    assert (found["protocol"], found["structured"], export["export-size"]) == ("newstyle-fixed", False, SIZE)
    assert export["description"] == "r0 on alpha"
    assert [export[f"block_size_{which}"] for which in ("minimum", "preferred", "maximum")] == [512, 4096, 4 * MIB]
    able = {key for key, value in export.items() if value is True}
    assert able == {"can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"}
    assert "r0 on alpha" in memory.run("nbdinfo", "--list", memory.uri)


def test_qemu_reads_back_the_patterns_it_wrote(memory: MemoryDevice) -> None:
    commands = (
        "write -P 7 4k 64k",
        "write -P 9 6M 8M",  # more than one request can carry
        "write -f -P 8 512 512",
        "flush",
        "read -P 7 4k 64k",
        "read -P 9 6M 8M",
        "read -P 8 512 512",
        "write -z 8k 4k",
        "read -P 0 8k 4k",
        "discard 4k 4k",
        "read -P 0 4k 4k",
    )
    output = memory.run(
        "qemu-io", "-t", "none", "-f", "raw", *(p for c in commands for p in ("-c", c)), memory.uri
    )  # exits with 0 even where a pattern differs
    assert "failed" not in output
    assert bytes(memory.bytes[512:1024]) == b"\x08" * 512
    assert max(request.length for request in memory.seen) == PAYLOAD_BYTES_MAX


def test_nbdcopy_copies_an_image_in_and_out_over_several_connections(memory: MemoryDevice, tmp_path: Path) -> None:
    image, back = tmp_path / "image", tmp_path / "back"
    image.write_bytes(os.urandom(SIZE // 2) + bytes(SIZE // 2))
    memory.run("nbdcopy", "--connections=4", "--flush", str(image), memory.uri)
    assert image.read_bytes() == memory.bytes
    memory.run("nbdcopy", "--connections=4", memory.uri, str(back))
    assert back.read_bytes() == memory.bytes


@pytest.mark.parametrize(("block", "depth"), [("4k", 32), ("512-256k", 8)])
def test_fio_over_four_connections_finds_every_block_as_it_wrote_it(
    memory: MemoryDevice, block: str, depth: int, tmp_path: Path
) -> None:
    memory.run(
        "fio",
        "--name=verify",
        "--ioengine=nbd",
        f"--uri={memory.uri}",
        "--rw=randrw",
        f"--bsrange={block}" if "-" in block else f"--bs={block}",
        f"--iodepth={depth}",
        "--size=8m",
        "--offset_increment=8m",
        "--numjobs=4",
        "--thread",
        "--verify=crc32c",
        "--verify_backlog=256",
        f"--aux-path={tmp_path}",
    )
    assert memory.frontend.counters.read_bytes >= 16 * MIB
    assert len({id(request.client) for request in memory.seen}) >= 4


def test_libnbd_flags_arrive_and_its_zeroes_are_zeroes(memory: MemoryDevice) -> None:
    memory.nbdsh(
        "h.pwrite(b'x' * 8192, 4096, nbd.CMD_FLAG_FUA)",
        "h.zero(1024, 4096, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)",
        "h.trim(1024, 8192, nbd.CMD_FLAG_FUA)",
        "h.zero(48 << 20, 8 << 20)",  # no payload, no limit
        "h.flush()",
        "assert h.pread(2048, 4096) == bytes(1024) + b'x' * 1024",
        "assert h.pread(512, 8192) == bytes(512)",
    )
    assert [(r.command, r.flags) for r in memory.seen] == [
        (WRITE, 1),
        (WRITE_ZEROES, 3),
        (TRIM, 1),
        (WRITE_ZEROES, 0),
        (FLUSH, 0),
        (READ, 0),
        (READ, 0),
    ]
    counters = memory.frontend.counters
    assert (counters.write_requests, counters.write_bytes, counters.flush_requests) == (1, 8192, 1)
    assert (counters.read_requests, counters.read_bytes) == (2, 2560)
    assert (counters.zero_requests, counters.zero_bytes) == (3, 2048 + 48 * MIB)


def test_libnbd_hears_why_a_request_cannot_be(memory: MemoryDevice) -> None:
    output = memory.nbdsh(
        "h.set_strict_mode(0)",
        """def error(what, *arguments):
    try:
        what(*arguments)
    except nbd.Error as error:
        return error.errno
""",
        "too_long = b'x' * ((4 << 20) + 512)",
        "end = h.get_size()",
        "print(error(h.pwrite, too_long, 0), error(h.pwrite, bytes(512), 1), error(h.pwrite, bytes(512), end))",
        "print(error(h.pread, 512, end), error(h.pread, 3, 0), error(h.trim, 512, end))",
        "print(error(h.cache, 512, 0), error(h.pread, 0, 0), error(h.pread, 8 << 20, 0))",
    )
    assert output.split() == ["EINVAL", "EINVAL", "ENOSPC", "EINVAL", "EINVAL", "EINVAL", "EINVAL", "None", "None"]
    assert [request.length for request in memory.seen] == [8 * MIB]


# ill-behaved and unlucky ones


def test_one_send_of_many_requests_is_one_batch_and_one_answer(memory: MemoryDevice) -> None:
    client = memory.connect()
    client.send(b"".join(write(block * 512, bytes([block]) * 512, cookie=block) for block in range(64)))
    assert client.replies(64) == dict.fromkeys(range(64), 0)
    assert bytes(memory.bytes[63 * 512 : 64 * 512]) == bytes([63]) * 512


def test_a_request_in_pieces_is_carried_out_when_it_is_whole(memory: MemoryDevice) -> None:
    client = memory.connect()
    data = os.urandom(1024)
    for byte in write(512, data, cookie=4) + header(FLUSH, cookie=5):
        client.send(bytes([byte]))
        memory.loop.run_once(0)
    assert client.replies(2) == {4: 0, 5: 0}
    assert bytes(memory.bytes[512:1536]) == data


def test_requests_stay_whole_wherever_the_buffer_ends(memory: MemoryDevice) -> None:
    client, expected, offset = memory.connect(), bytearray(SIZE), 0
    lengths = [PAYLOAD_BYTES_MAX, 512, 3 * MIB, 65024, PAYLOAD_BYTES_MAX - 512, 2 * MIB, 1536, PAYLOAD_BYTES_MAX] * 2
    for length in lengths:
        data = os.urandom(length)
        expected[offset : offset + length] = data
        client.send(write(offset, data, cookie=offset))
        offset += length
    assert set(client.replies(len(lengths)).values()) == {0}
    assert memory.bytes == expected


def test_reads_are_answered_when_they_are_done_in_whatever_order(memory: MemoryDevice) -> None:
    memory.bytes[:1024] = b"a" * 512 + b"b" * 512
    memory.holds = True
    client = memory.connect()
    client.send(header(READ, 0, 512, cookie=1) + header(READ, 512, 512, cookie=2) + header(READ, 0, 512, cookie=3))
    memory.run_until(lambda: len(memory.held) == 3)
    memory.held[2].error = EIO
    memory.held.reverse()
    memory.release()
    assert client.receive(48 + 1024) == b"".join(
        struct.pack(">IIQ", 0x67446698, error, cookie) + data
        for cookie, error, data in ((3, EIO, b""), (2, 0, b"b" * 512), (1, 0, b"a" * 512))
    )


def test_one_completion_answers_the_requests_of_several_clients(memory: MemoryDevice) -> None:
    memory.holds = True
    clients = [memory.connect() for _ in range(3)]
    for number, client in enumerate(clients):
        client.send(write(0, bytes(512), cookie=number) + header(FLUSH, cookie=number + 10))
    memory.run_until(lambda: len(memory.held) == 6)
    memory.release()
    for number, client in enumerate(clients):
        assert client.replies(2) == {number: 0, number + 10: 0}


def test_a_client_killed_in_the_middle_of_a_payload_leaves_nothing_behind(memory: MemoryDevice) -> None:
    memory.holds = True
    dying, other = memory.connect(), memory.connect()
    dying.send(write(0, b"a" * 512) + write(512, b"b" * 4096)[:-1])
    other.send(write(8192, b"c" * 512, cookie=6))
    memory.run_until(lambda: len(memory.held) == 2)
    dying.sock.close()
    memory.run_until(lambda: len(memory.frontend.openers) == 1)
    memory.release()  # the reply of the dead one goes nowhere
    assert other.replies(1) == {6: 0}
    assert bytes(memory.bytes[512:4608]) == bytes(4096)


def test_a_client_that_does_not_fetch_its_replies_is_not_listened_to(memory: MemoryDevice) -> None:
    slow, other = memory.connect(), memory.connect()
    slow.send(header(READ, 0, MIB) * 100)
    memory.run_quiet()
    served = len(memory.seen)
    assert served * MIB <= UNSENT_BYTES_MAX + 2 * MIB
    other.send(header(FLUSH, cookie=1))
    assert other.replies(1) == {1: 0}
    slow.receive(100 * (16 + MIB))
    assert len(memory.seen) == 101


def test_reads_under_way_count_like_replies_not_fetched(memory: MemoryDevice) -> None:
    memory.holds = True
    client = memory.connect()
    client.send(header(READ, 0, PAYLOAD_BYTES_MAX) * 20)
    memory.run_quiet()
    assert len(memory.held) == UNSENT_BYTES_MAX // PAYLOAD_BYTES_MAX
    memory.holds = False
    memory.release()
    client.receive(20 * (16 + PAYLOAD_BYTES_MAX))


def test_requests_under_way_are_bounded_in_number(memory: MemoryDevice) -> None:
    memory.holds = True
    client = memory.connect()
    client.send(header(FLUSH) * 5000)
    memory.run_quiet()
    assert len(memory.held) == 1024
    memory.holds = False
    memory.release()
    client.replies(5000)


def test_the_ninth_client_is_turned_away_and_the_others_stay(memory: MemoryDevice) -> None:
    clients = [memory.connect() for _ in range(CLIENTS_MAX)]
    ninth = RawClient(memory)
    memory.run_until(ninth.is_closed)
    assert memory.notes == [f"{memory.path}: pid {os.getpid()} ({_own_name()}) is turned away: 8 clients at most"]
    clients.pop().sock.close()
    memory.run_until(lambda: len(memory.frontend.openers) == CLIENTS_MAX - 1)
    for client in [*clients, memory.connect()]:
        client.send(header(FLUSH, cookie=3))
        assert client.replies(1) == {3: 0}


def test_garbage_closes_its_client_and_no_other(memory: MemoryDevice) -> None:
    other, bad, stranger = memory.connect(), memory.connect(), RawClient(memory)
    bad.send(write(0, b"x" * 512) + b"?" * 28)
    stranger.send(b"GET / HTTP/1.1\r\n\r\n")
    memory.run_until(lambda: bad.is_closed() and stranger.is_closed())
    assert bytes(memory.bytes[:1]) == b"x"
    assert len(memory.notes) == 2
    other.send(header(FLUSH))
    other.replies(1)


# pausing


def test_while_paused_nothing_is_taken_and_payloads_stay_as_they_are(memory: MemoryDevice) -> None:
    memory.holds = memory.pauses = True
    client, other = memory.connect(), memory.connect()
    client.send(b"".join(write(n * 512, bytes([n]) * 512, cookie=n) for n in range(20)))
    memory.run_until(lambda: memory.held)
    first = len(memory.held)
    sent = 0
    flood = write(MIB, b"?" * MIB, cookie=99)
    for _ in range(100):
        sent += client.push(memoryview(flood)[sent:])
        other.push(header(FLUSH))
        memory.loop.run_once(0)
    assert len(memory.held) == first
    memory.holds = memory.pauses = False
    memory.release()
    assert bytes(memory.bytes[: first * 512 : 512]) == bytes(range(first))
    assert client.replies(first) == dict.fromkeys(range(first), 0), "replies are sent all the same"
    memory.run_quiet()
    assert len(memory.seen) == first
    memory.frontend.resume()
    assert len(memory.seen) == first, "resume only says that the next round may"
    client.send(flood[sent:])
    assert client.replies(20 - first + 1)[99] == 0
    other.replies(1)


def test_pausing_after_every_batch_loses_nothing(memory: MemoryDevice) -> None:
    memory.pauses = memory.resumes = True
    clients = [memory.connect() for _ in range(3)]
    data = os.urandom(300 * 4096)
    for block in range(300):
        clients[block % 3].send(write(block * 4096, data[block * 4096 : (block + 1) * 4096], cookie=block))
    for number, client in enumerate(clients):
        assert client.replies(100) == dict.fromkeys(range(number, 300, 3), 0)
    assert bytes(memory.bytes[: len(data)]) == data


def test_pausing_after_every_batch_starves_nobody(memory: MemoryDevice) -> None:
    memory.pauses = memory.holds = True
    clients = [memory.connect() for _ in range(4)]
    memory.frontend.pause()
    for number, client in enumerate(clients):
        client.send(write(number * 512, bytes(512)))
    while len(memory.seen) < 4:  # one batch at a time, and all four always have something to say
        memory.frontend.resume()
        memory.run_quiet()
        clients[memory.seen[-1].offset // 512].send(write(memory.seen[-1].offset, bytes(512)))
    assert {request.offset for request in memory.seen} == {0, 512, 1024, 1536}


def test_a_client_that_dies_while_paused_is_noticed_and_its_payload_survives(memory: MemoryDevice) -> None:
    memory.holds = memory.pauses = True
    client = memory.connect()
    client.send(write(0, b"kept" * 128))
    memory.run_until(lambda: memory.held)
    client.sock.close()
    memory.run_until(lambda: not memory.frontend.openers)
    memory.release()
    assert bytes(memory.bytes[:4]) == b"kept"


def test_who_comes_while_paused_is_let_in_and_out(memory: MemoryDevice) -> None:
    memory.frontend.pause()
    memory.run("nbdinfo", "--size", memory.uri)
    assert memory.frontend.openers == []


# leaving


def test_disconnect_waits_for_what_is_under_way(memory: MemoryDevice) -> None:
    memory.holds = True
    client = memory.connect()
    client.send(write(0, b"x" * 512, cookie=1) + header(READ, 0, MIB, cookie=2) + header(DISCONNECT))
    memory.run_until(lambda: len(memory.held) == 2)
    memory.run_quiet()
    assert memory.frontend.openers
    memory.release()
    client.receive(32 + MIB)
    memory.run_until(client.is_closed)
    assert not memory.frontend.openers


def test_openers_are_named_and_a_handshake_holds_nothing(memory: MemoryDevice) -> None:
    stranger = RawClient(memory)
    client = memory.connect()
    assert memory.frontend.openers == [Opener(os.getpid(), os.getuid(), _own_name())]
    client.send(header(DISCONNECT))
    memory.run_until(client.is_closed)
    assert memory.frontend.openers == []
    stranger.sock.close()


def test_while_stopping_nobody_new_gets_the_device_and_what_runs_ends(memory: MemoryDevice) -> None:
    memory.holds = True
    client = memory.connect()
    client.send(write(0, b"x" * 512, cookie=1))
    memory.run_until(lambda: memory.held)
    memory.frontend.begin_stop()
    assert "shutting down" in memory.run("nbdinfo", "--size", memory.uri, expected=1)
    client.send(write(512, b"y" * 512, cookie=2))
    assert client.replies(1) == {2: ESHUTDOWN}
    memory.release()
    assert client.replies(1) == {1: 0}
    memory.frontend.cancel_stop()
    memory.run("nbdinfo", "--size", memory.uri)


def test_closing_answers_what_is_under_way_and_removes_the_socket(memory: MemoryDevice) -> None:
    memory.holds = True
    client = memory.connect()
    client.send(write(0, b"x" * 512, cookie=1) + header(FLUSH, cookie=2))
    memory.run_until(lambda: len(memory.held) == 2)
    memory.frontend.close()
    assert client.replies(2) == {1: ESHUTDOWN, 2: ESHUTDOWN}
    assert client.is_closed()
    assert not memory.path.exists()
    memory.release()  # too late, and harmless
    memory.holds = False
    memory.frontend.start()
    again = memory.connect()
    again.send(header(FLUSH, cookie=3))
    assert again.replies(1) == {3: 0}


def test_closing_from_inside_submit_is_allowed(memory: MemoryDevice) -> None:
    client = memory.connect()
    memory.closes_with = EIO
    client.send(header(FLUSH, cookie=1) + header(77, cookie=2))
    assert client.replies(1) == {1: EIO}
    memory.run_until(client.is_closed)


def test_a_refused_write_in_the_middle_of_others_costs_only_itself(memory: MemoryDevice) -> None:
    client = memory.connect()
    length = PAYLOAD_BYTES_MAX + 512
    client.send(write(0, b"a" * 512, cookie=1) + write(0, bytes(length), cookie=2))
    client.send(write(512, b"b" * 512, cookie=3, flags=FLAG_FUA))
    assert client.replies(3) == {1: 0, 2: EINVAL, 3: 0}


def test_the_socket_is_its_owners_and_one_left_behind_is_replaced(tmp_path: Path) -> None:
    loop = Loop()
    path = tmp_path / "nbd"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    memory = MemoryDevice(loop, path)
    memory.frontend.start()
    assert path.stat().st_mode & 0o777 == 0o600
    memory.connect()
    memory.frontend.close()
    assert not path.exists()
    loop.close()


def test_a_socket_that_cannot_be_says_so(tmp_path: Path) -> None:
    loop = Loop()
    memory = MemoryDevice(loop, tmp_path / "nowhere" / "nbd")
    with pytest.raises(MirrorError, match="nowhere/nbd: cannot listen"):
        memory.frontend.start()
    loop.close()


def _own_name() -> str:
    return Path("/proc/self/comm").read_text(encoding="utf-8").strip()
