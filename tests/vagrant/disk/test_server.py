"""The real disk server, asked by a client of the tests' own and by libnbd's programs; each order, and the power cut."""

import json
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vagrant.namespaces.disk import nbd

SERVER = Path(__file__).resolve().parents[3] / "vagrant" / "namespaces" / "disk" / "server.py"
SIZE = 4 << 20
DEADLINE_S = 20.0
SILENCE_S = 0.2


class Client:
    """One NBD connection that can ask without waiting."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(str(path))
        assert self.receive(18) == b"NBDMAGICIHAVEOPT\x00\x03"
        self.socket.sendall(struct.pack(">I", 3) + struct.pack(">QII", nbd.OPTION_MAGIC, nbd.Option.EXPORT_NAME, 0))
        self.size_bytes, self.flags = struct.unpack(">QH", self.receive(10))
        self.cookie = 0

    def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise ConnectionError("the disk closed the connection")
            data += piece
        return data

    def send(self, command: int, offset: int = 0, length: int = 0, flags: int = 0, payload: bytes = b"") -> None:
        self.cookie += 1
        head = struct.pack(">IHHQQI", nbd.REQUEST_MAGIC, flags, command, self.cookie, offset, length or len(payload))
        self.socket.sendall(head + payload)

    def error(self) -> int:
        magic, error, _ = struct.unpack(">IIQ", self.receive(16))
        assert magic == nbd.REPLY_MAGIC
        return int(error)

    def ask(self, command: int, offset: int = 0, length: int = 0, flags: int = 0, payload: bytes = b"") -> int:
        self.send(command, offset, length, flags, payload)
        return self.error()

    def write(self, offset: int, data: bytes, flags: int = 0) -> None:
        assert self.ask(nbd.Command.WRITE, offset, flags=flags, payload=data) == 0

    def read(self, offset: int, length: int) -> bytes:
        assert self.ask(nbd.Command.READ, offset, length) == 0
        return self.receive(length)

    def flush(self) -> None:
        assert self.ask(nbd.Command.FLUSH) == 0

    def says_something(self, patience_s: float) -> bool:
        """Whether an answer, or the end of the connection, comes within the time."""
        self.socket.settimeout(patience_s)
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return False
        finally:
            self.socket.settimeout(DEADLINE_S)
        return True


class Server:
    """A disk server that lives as long as one test."""

    def __init__(self, directory: Path, size: int = SIZE) -> None:
        self.directory = directory
        self.socket = directory / "nbd"
        self.control = directory / "control"
        self.command = [
            "/usr/bin/python3", "-IS", str(SERVER), "--size", str(size), "--socket", str(self.socket),
            "--control", str(self.control), "--directory", str(directory), "--seed", "5",
        ]  # fmt: skip
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        self.clients: list[Client] = []

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.socket}"

    def client(self) -> Client:
        self.clients.append(Client(self.socket))
        return self.clients[-1]

    def say(self, line: bytes) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(DEADLINE_S)
            control.connect(str(self.control))
            control.sendall(line + b"\n")
            answer: dict[str, Any] = json.loads(control.makefile("rb").readline())
            return answer

    def order(self, do: str, **arguments: Any) -> dict[str, Any]:
        answer = self.say(json.dumps({"do": do, **arguments}).encode())
        assert "error" not in answer, answer
        return answer

    def wait_until(self, fulfilled: Callable[[dict[str, Any]], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not fulfilled(state := self.order("state")):
            assert time.monotonic() < deadline, state
            time.sleep(0.005)

    def stop(self) -> None:
        for client in self.clients:
            client.socket.close()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    try:
        yield server
    finally:
        server.stop()


def libnbd(program: str, *arguments: str) -> str:
    found = shutil.which(program)
    assert found, f"{program} is missing; apt-get install libnbd-bin"
    return subprocess.run([found, *arguments], check=True, capture_output=True, text=True, timeout=DEADLINE_S).stdout


def test_nbdinfo_sees_one_disk_with_flush_fua_trim_zeroes_and_many_connections(disk: Server) -> None:
    export = json.loads(libnbd("nbdinfo", "--json", "--list", disk.uri))["exports"][0]
    assert (export["export-name"], export["export-size"]) == ("", SIZE)
    able = ("can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn")
    assert [export[name] for name in able] == [True] * len(able)
    assert not export["is_read_only"]
    assert (export["block_size_preferred"], export["block_size_maximum"]) == (4096, 32 << 20)


def test_what_nbdcopy_writes_over_several_connections_it_reads_back(disk: Server, tmp_path: Path) -> None:
    image, copy = tmp_path / "image", tmp_path / "copy"
    image.write_bytes(b"".join(number.to_bytes(8, "big") for number in range(SIZE // 8)))
    libnbd("nbdcopy", "--flush", "--connections=4", "--request-size=65536", str(image), disk.uri)
    libnbd("nbdcopy", "--connections=4", disk.uri, str(copy))
    assert copy.read_bytes() == image.read_bytes()


def test_a_sparse_image_is_copied_with_zeroing_and_trimming(disk: Server, tmp_path: Path) -> None:
    disk.client().write(0, b"x" * SIZE)
    image, copy = tmp_path / "image", tmp_path / "copy"
    image.touch()
    with image.open("r+b") as file:
        file.truncate(SIZE)
        file.seek(SIZE // 2)
        file.write(b"data" * 1024)
    libnbd("nbdcopy", "--flush", str(image), disk.uri)
    libnbd("nbdcopy", disk.uri, str(copy))
    assert copy.read_bytes() == image.read_bytes()


@pytest.mark.parametrize("offset", [0, 1, 511, 4095, SIZE - 3])
def test_any_byte_can_be_written_and_read(disk: Server, offset: int) -> None:
    client = disk.client()
    client.write(offset, b"abc")
    assert client.read(offset, 3) == b"abc"


def test_one_connection_reads_what_another_wrote(disk: Server) -> None:
    one, other = disk.client(), disk.client()
    one.write(4096, b"seen")
    assert other.read(4096, 4) == b"seen"


def test_many_requests_in_one_breath_are_answered_in_order(disk: Server) -> None:
    client = disk.client()
    for number in range(1000):
        client.send(nbd.Command.WRITE, number * 8, payload=number.to_bytes(8, "big"))
    assert [client.error() for _ in range(1000)] == [0] * 1000
    assert client.read(0, 8000) == b"".join(number.to_bytes(8, "big") for number in range(1000))


def test_a_client_that_does_not_read_its_answers_costs_bounded_memory(disk: Server) -> None:
    client = disk.client()
    head = struct.pack(">IHHQQI", nbd.REQUEST_MAGIC, 0, nbd.Command.READ, 1, 0, SIZE)
    client.socket.sendall(head * 500)
    disk.wait_until(lambda state: state["reads"] > 0)
    status = Path(f"/proc/{disk.process.pid}/status").read_text()
    resident_kib = int(status.partition("VmHWM:")[2].split()[0])
    assert resident_kib < 100_000
    for _ in range(500):
        assert client.error() == 0
        client.receive(SIZE)


def test_a_write_of_the_largest_size_is_taken_and_a_longer_one_ends_the_connection(tmp_path: Path) -> None:
    server = Server(tmp_path, size=64 << 20)
    try:
        client = server.client()
        client.write(0, b"y" * (32 << 20))
        assert client.read((32 << 20) - 1, 2) == b"y\0"
        client.send(nbd.Command.WRITE, 0, (32 << 20) + 1)
        with pytest.raises(ConnectionError):
            client.error()
    finally:
        server.stop()


def test_garbage_ends_its_own_connection_only(disk: Server) -> None:
    good, bad = disk.client(), disk.client()
    bad.socket.sendall(b"g" * 100)
    with pytest.raises(ConnectionError):
        bad.error()
    good.write(0, b"fine")


def test_a_disconnect_closes_after_the_work_before_it(disk: Server) -> None:
    client = disk.client()
    client.send(nbd.Command.WRITE, 0, payload=b"last")
    client.send(nbd.Command.DISCONNECT)
    assert client.error() == 0
    with pytest.raises(ConnectionError):
        client.error()
    assert disk.client().read(0, 4) == b"last"


def test_trimmed_and_zeroed_ranges_read_as_zeroes(disk: Server) -> None:
    client = disk.client()
    client.write(0, b"z" * 65536)
    assert client.ask(nbd.Command.TRIM, 100, 5000) == 0
    assert client.ask(nbd.Command.WRITE_ZEROES, 10_000, 5000) == 0
    assert client.ask(nbd.Command.WRITE_ZEROES, 20_000, 5000, nbd.CommandFlag.NO_HOLE) == 0
    expected = bytearray(b"z" * 65536)
    for start in (100, 10_000, 20_000):
        expected[start : start + 5000] = bytes(5000)
    assert client.ask(nbd.Command.TRIM, 30_000, 0) == 0
    expected[100:5100] = bytes(5000)
    assert client.read(0, 65536) == expected


def test_a_bad_range_fails_the_operations_named_and_nothing_beside_it(disk: Server) -> None:
    client = disk.client()
    disk.order("error", operations=["write"], first=4096, last=8191)
    assert client.ask(nbd.Command.WRITE, 8190, payload=b"abc") == nbd.ErrorNumber.EIO
    assert client.ask(nbd.Command.TRIM, 0, 5000) == nbd.ErrorNumber.EIO
    client.write(8192, b"abc")
    client.write(4093, b"abc")
    client.read(4096, 4096)
    client.flush()
    disk.order("error", operations=["read", "flush"])
    assert client.ask(nbd.Command.READ, 0, 1) == nbd.ErrorNumber.EIO
    assert client.ask(nbd.Command.FLUSH) == nbd.ErrorNumber.EIO
    client.write(4096, b"abc")
    assert disk.order("ok")["faults"] == []
    client.flush()


def test_a_flush_that_failed_covers_nothing(disk: Server) -> None:
    client = disk.client()
    client.write(0, b"new")
    disk.order("error", operations=["flush"])
    assert client.ask(nbd.Command.FLUSH) == nbd.ErrorNumber.EIO
    assert disk.order("power-loss", keep="none")["lost"] == 1


def test_a_slow_disk_delays_each_request_and_not_one_after_another(disk: Server) -> None:
    client = disk.client()
    disk.order("slow", ms=150)
    began = time.monotonic()
    for _ in range(20):
        client.send(nbd.Command.WRITE, 0, payload=b"a")
    assert [client.error() for _ in range(20)] == [0] * 20
    assert 0.15 <= time.monotonic() - began < 1.5


def test_a_hung_disk_takes_requests_and_answers_them_when_it_is_mended(disk: Server) -> None:
    client = disk.client()
    disk.order("hang")
    client.send(nbd.Command.WRITE, 0, payload=b"held")
    client.send(nbd.Command.READ, 0, 4)
    disk.wait_until(lambda state: state["held_requests"] == 2)
    assert not client.says_something(SILENCE_S)
    disk.order("ok")
    assert client.error() == 0
    assert client.error() == 0
    assert client.receive(4) == b"held"


def test_a_hung_disk_stops_reading_before_its_memory_fills(disk: Server) -> None:
    client = disk.client()
    disk.order("hang")
    client.socket.settimeout(0.5)

    def pour() -> None:
        for _ in range(100):
            client.send(nbd.Command.WRITE, 0, payload=bytes(1 << 20))

    with pytest.raises(TimeoutError):
        pour()
    assert disk.order("state")["held_requests"] <= 20


def test_a_full_disk_refuses_to_allocate_and_still_overwrites(disk: Server) -> None:
    client = disk.client()
    client.write(0, b"a" * 4096)
    disk.order("full")
    assert client.ask(nbd.Command.WRITE, 1 << 20, payload=b"b" * 4096) == nbd.ErrorNumber.ENOSPC
    assert client.ask(nbd.Command.WRITE, 0, payload=b"b" * 8192) == nbd.ErrorNumber.ENOSPC
    client.write(0, b"b" * 4096)
    assert client.ask(nbd.Command.TRIM, 0, 4096) == 0
    assert client.ask(nbd.Command.WRITE, 0, payload=b"c" * 4096) == nbd.ErrorNumber.ENOSPC
    disk.order("ok")
    client.write(1 << 20, b"b" * 4096)


def test_faults_add_up_until_they_are_ended(disk: Server) -> None:
    disk.order("slow", ms=1)
    assert disk.order("full")["faults"] == ["slow", "full"]
    assert disk.order("ok")["faults"] == []


def test_a_frozen_disk_says_nothing_and_closes_nothing_and_goes_on_after_the_thaw(disk: Server) -> None:
    client = disk.client()
    client.write(0, b"before")
    assert disk.order("freeze")["mode"] == "frozen"
    client.send(nbd.Command.READ, 0, 6)
    assert not client.says_something(SILENCE_S)
    assert disk.order("thaw")["mode"] == "serving"
    assert client.error() == 0
    assert client.receive(6) == b"before"


@pytest.mark.parametrize("keep", ["none", "all", "random"])
def test_flushed_data_survives_a_power_cut_and_unflushed_data_as_ordered(disk: Server, keep: str) -> None:
    client = disk.client()
    client.write(0, b"F" * 65536)
    client.flush()
    client.write(65536, b"U" * 65536)
    disk.order("freeze")
    told = disk.order("power-loss", keep=keep, seed=3)
    with pytest.raises(ConnectionError):
        client.error()
    disk.order("thaw")
    contents = disk.client().read(0, 131072)
    assert contents[:65536] == b"F" * 65536
    sectors = [contents[start : start + 512] for start in range(65536, 131072, 512)]
    kept = sectors.count(b"U" * 512)
    assert kept + sectors.count(bytes(512)) == 128
    assert (told["sectors_at_risk"], told["kept"], told["lost"]) == (128, kept, 128 - kept)
    assert kept == {"none": 0, "all": 128}.get(keep, kept)
    if keep == "random":
        assert 0 < kept < 128


def test_a_flush_on_one_connection_covers_what_was_answered_on_another(disk: Server) -> None:
    one, other = disk.client(), disk.client()
    one.write(0, b"paid")
    other.flush()
    disk.order("power-loss", keep="none")
    disk.order("thaw")
    assert disk.client().read(0, 4) == b"paid"


def test_forced_unit_access_needs_no_flush(disk: Server) -> None:
    client = disk.client()
    client.write(0, b"loose")
    client.write(512, b"paid", flags=nbd.CommandFlag.FUA)
    disk.order("power-loss", keep="none")
    disk.order("thaw")
    assert disk.client().read(0, 1024) == bytes(512) + b"paid" + bytes(508)


def test_a_trim_that_no_flush_covers_may_be_lost_too(disk: Server) -> None:
    client = disk.client()
    client.write(0, b"old" * 1000)
    client.flush()
    assert client.ask(nbd.Command.TRIM, 0, 4096) == 0
    disk.order("power-loss", keep="none")
    disk.order("thaw")
    assert disk.client().read(0, 3000) == b"old" * 1000


def test_requests_that_hung_at_the_power_cut_never_happen(disk: Server) -> None:
    client = disk.client()
    disk.order("hang")
    client.send(nbd.Command.WRITE, 0, payload=b"ghost")
    disk.wait_until(lambda state: state["held_requests"] == 1)
    disk.order("power-loss", keep="all")
    disk.order("ok")
    disk.order("thaw")
    assert disk.client().read(0, 5) == bytes(5)


def test_each_power_cut_takes_other_sectors_unless_a_seed_is_given(disk: Server) -> None:
    seeds = [disk.order("power-loss")["seed"] for _ in range(2)]
    assert seeds == [5, 6]
    assert disk.order("power-loss", seed=77)["seed"] == 77


def test_the_state_counts_what_was_asked_for(disk: Server) -> None:
    client = disk.client()
    client.write(0, b"a" * 1024)
    client.read(0, 1)
    state = disk.order("state")
    assert {name: state[name] for name in ("reads", "writes", "flushes", "unflushed_sectors", "connections")} == {
        "reads": 1, "writes": 1, "flushes": 0, "unflushed_sectors": 2, "connections": 1,
    }  # fmt: skip
    client.flush()
    assert disk.order("state")["unflushed_sectors"] == 0


@pytest.mark.parametrize(
    "line",
    [
        b"no json",
        b"[]",
        b'{"do": "explode"}',
        b'{"do": 5}',
        b"{}",
        b'{"do": "slow"}',
        b'{"do": "slow", "ms": -1}',
        b'{"do": "slow", "ms": true}',
        b'{"do": "error", "operations": ["seek"]}',
        b'{"do": "error", "operations": "read"}',
        b'{"do": "error", "operations": [["read"]]}',
        b'{"do": "error", "first": 10, "last": 9}',
        b'{"do": "power-loss", "keep": "some"}',
        b'{"do": "power-loss", "keep": ["none"]}',
        b'{"do": "power-loss", "seed": "x"}',
        b"\xff\xfe",
    ],
)
def test_a_wrong_order_is_answered_by_the_fact_and_the_remedy_and_changes_nothing(disk: Server, line: bytes) -> None:
    before = disk.order("state")
    answer = disk.say(line)
    assert set(answer) == {"error", "remedy"}
    assert disk.order("state") == before


def test_several_orders_on_one_connection_are_answered_one_by_one(disk: Server) -> None:
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(DEADLINE_S)
        control.connect(str(disk.control))
        control.sendall(b'{"do": "full"}\n{"do": "ok"}\n{"do": "st')
        answers = control.makefile("rb")
        assert json.loads(answers.readline())["faults"] == ["full"]
        assert json.loads(answers.readline())["faults"] == []
        control.sendall(b'ate"}\n')
        assert json.loads(answers.readline())["mode"] == "serving"


def test_a_second_server_is_refused_the_sockets_of_a_living_one_and_takes_those_of_a_dead_one(disk: Server) -> None:
    second = subprocess.run(disk.command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert second.returncode == 1
    assert "name another path" in second.stderr
    disk.process.kill()
    disk.process.wait()
    successor = Server(disk.directory)
    successor.stop()


def test_nothing_is_left_in_the_directory_of_the_contents(disk: Server) -> None:
    disk.client().write(0, b"secret")
    assert sorted(path.name for path in disk.directory.iterdir()) == ["control", "nbd"]


def test_it_ends_when_told_to(disk: Server) -> None:
    disk.process.terminate()
    assert disk.process.wait(timeout=DEADLINE_S) == -15
