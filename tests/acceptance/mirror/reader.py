"""A client on a mounted mirror while its peer is cut off, slow, paused, killed, and returns: how long it waits.

The bounds are those of docs/replication.md, "How long anything may take", for the time-outs of generated .res files.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.acceptance.mirror.load import BLOCKS, FILE, MOUNT_POINT
from tests.acceptance.mirror.oracle import Wait
from tests.acceptance.mirror.pair import MirrorPair, in_sync, is_disconnected
from tests.acceptance.mirror.rounds import MEMORY_BOUND_KIB, SCHEDULING_S, SILENCE_BOUND_S, Stage
from tests.soak.evidence import Figures

HUNG_DISK_BOUND_S = 14.0 + SCHEDULING_S
"""timeout x ko-count."""
READ_BOUND_S = SCHEDULING_S
"""mirrord answers reads from its own disk; all they may wait for is the machine.

Between it and the client there may be a loop device, which serves a flush in line: what is read after a flush was
issued waits with it. So reads through the device are bounded as writes are, and mirrord is asked by NBD too.
"""
OTHER = f"{MOUNT_POINT}/flushed"
SAMPLE_S = 0.1
DELAY_MS = 50
SLOW_MS = 100


@dataclass(frozen=True)
class Fault:
    """Happens to the peer of whoever serves the client: begins, lasts, ends; and how long writes may wait for it."""

    name: str
    begin: Callable[[MirrorPair, str], None]
    end: Callable[[MirrorPair, str], None]
    lasts_s: float
    write_bound_s: float
    is_noticed: bool = True
    """Does the Primary lose the connection? Then the end waits for that, if it takes longer than `lasts_s`."""

    def __str__(self) -> str:
        return self.name


FAULTS = (
    Fault("cut", lambda pair, _: pair.lab.cut("data"), lambda pair, _: pair.lab.heal("data"), 4.0, SILENCE_BOUND_S),
    Fault(
        "delayed",
        lambda pair, _: pair.lab.delay("data", DELAY_MS),
        lambda pair, _: pair.lab.heal("data"),
        4.0,
        SILENCE_BOUND_S,
        is_noticed=False,
    ),
    Fault("paused", lambda pair, peer: _pause(pair, peer), lambda pair, peer: _resume(pair, peer), 20.0,
          SILENCE_BOUND_S),
    Fault("killed", lambda pair, peer: pair.kill_mirrord(peer), lambda pair, peer: pair.up(peer), 2.0, SILENCE_BOUND_S),
    Fault(
        "disk-slow",
        lambda pair, peer: _disk(pair, peer, "slow", ms=SLOW_MS),
        lambda pair, peer: _disk(pair, peer, "ok"),
        5.0,
        SILENCE_BOUND_S,
        is_noticed=False,
    ),
    Fault(
        "disk-hung",
        lambda pair, peer: _disk(pair, peer, "hang"),
        lambda pair, peer: _disk(pair, peer, "ok"),
        2.0,
        HUNG_DISK_BOUND_S,
    ),
)  # fmt: skip


def meet(stage: Stage, fault: Fault) -> Figures:
    """One fault, from a mirror in sync to a mirror in sync. Raises AssertionError when a bound was not kept.

    Gives the longest waits, counted from the begin of the fault until both sides were equal again, and the memory of
    both daemons.
    """
    pair, active = stage.pair, stage.active
    peer = pair.other(active)
    with Memory(pair) as memory, client(pair, active) as log:
        fault.begin(pair, peer)
        begin = time.monotonic()
        time.sleep(fault.lasts_s)
        if fault.is_noticed:
            pair.wait(active, f"{fault}: noticed", is_disconnected)
        noticed_s = time.monotonic() - begin
        fault.end(pair, peer)
        pair.wait_in_sync()
    waits = _waits(log)
    by_nbd, reads, writes = (longest(waits[word]) for word in "nrw")
    assert by_nbd <= READ_BOUND_S, f"{fault}: mirrord answered a read after {by_nbd:.2f} s\n{pair.logs()}"
    assert reads <= fault.write_bound_s, f"{fault}: a read waited {reads:.2f} s\n{pair.logs()}"
    assert writes <= fault.write_bound_s, f"{fault}: a write with its flush waited {writes:.2f} s\n{pair.logs()}"
    assert fault.is_noticed or in_sync(pair.status(active))
    peak_kib = max(memory.peak_kib.values())
    assert peak_kib <= MEMORY_BOUND_KIB, f"{fault}: a mirrord grew to {peak_kib} KiB"
    return {
        "reads": len(waits["r"]) + len(waits["n"]), "writes": len(waits["w"]), "lasted_s": round(noticed_s, 2),
        "longest_nbd_read_s": round(by_nbd, 3), "longest_read_s": round(reads, 3),
        "longest_write_s": round(writes, 3),
        "active_peak_kib": memory.peak_kib[active], "standby_peak_kib": memory.peak_kib[peer],
        "rss_kib": max(memory.rss_kib.values()),
    }  # fmt: skip


def longest(waits: list[Wait]) -> float:
    assert waits, "the client did nothing: it proves nothing"
    return max(wait.duration_s for wait in waits)


@contextmanager
def client(pair: MirrorPair, node: str) -> Iterator[list[str]]:
    """A reader and a writer on the mounted mirror; the list is filled with their log when they have ended.

    Raises AssertionError when a request failed.
    """
    lines: list[str] = []
    with TemporaryDirectory(prefix="mirrorha-reader-") as directory:
        log = Path(directory) / "log"
        words = pair.program("stalls.py", FILE, str(BLOCKS), OTHER, pair.nbd_socket)
        with log.open("wb") as output:
            process = pair.lab.popen(node, words, stdin=subprocess.PIPE, stdout=output)
        assert process.stdin is not None
        try:
            deadline = time.monotonic() + 10.0
            while not {b"r", b"w", b"n"} <= {line[:1] for line in log.read_bytes().splitlines()}:
                assert time.monotonic() < deadline, f"{node}: the client does not begin"
                time.sleep(0.01)
            yield lines
            process.stdin.close()
            status = process.wait(40.0)
            lines += log.read_text(encoding="utf-8").splitlines()
            assert status == 0, f"{node}: a request failed: {lines[-1:]}\n{pair.logs()}"
        finally:
            process.kill()
            process.wait()
            process.stdin.close()


class Memory:
    """Watches what both daemons need while a block runs."""

    def __init__(self, pair: MirrorPair) -> None:
        self._pair = pair
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.rss_kib = dict.fromkeys(pair.nodes, 0)
        self.peak_kib = dict.fromkeys(pair.nodes, 0)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            for node in self._pair.nodes:
                try:
                    sample = self._pair.memory_kib(node)
                except (AssertionError, OSError):  # killed just now
                    continue
                if len(sample) == 2:  # a process that is just ending has no memory
                    self.rss_kib[node] = max(self.rss_kib[node], sample["VmRSS"])
                    self.peak_kib[node] = max(self.peak_kib[node], sample["VmHWM"])


def _waits(lines: list[str]) -> dict[str, list[Wait]]:
    found: dict[str, list[Wait]] = {"r": [], "w": [], "n": []}
    for line in lines:
        word, issued_s, answered_s = line.split()
        found[word].append(Wait(float(issued_s), float(answered_s)))
    return found


def _pause(pair: MirrorPair, node: str) -> None:
    """Silence first: a mirrord that is in the kernel for its disk, whose controller has stopped already, stops late."""
    pair.lab.cut("data")
    pair.lab.pause(node)


def _resume(pair: MirrorPair, node: str) -> None:
    pair.lab.resume(node)
    pair.lab.heal("data")


def _disk(pair: MirrorPair, node: str, do: str, **arguments: int) -> None:
    pair.lab.disk(node, do, **arguments)
