"""The mirror against QEMU's mirror and against no mirror at all: fio over NBD, both ends on this machine.

    python -m tests.bench.mirror [--direct] [--rounds N] [--seconds S]      these rows only

Rates are higher for the better, so their bars are "at least". Each case is measured in rounds, one device after the
other in each, and what a device left in the page cache is on the disk before the next begins.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench import mirror_peers
from tests.bench.mirror_peers import Served
from tests.bench.rows import Bound, Row, row, table

WORKPLACE = Path("/var/tmp")
"""On a real file system; what tmpfs costs is not what disks cost."""
SPAN_MIB = 448
"""What is written to of each device."""
ROUNDS, SECONDS = 5, 3.0
PERCENTILE = "99.000000"


@dataclass(frozen=True)
class Case:
    name: str
    options: tuple[str, ...]
    unit: str
    bars: dict[str, float]
    """Peer -> at least so many times its rate."""


CASES = (
    Case("mirror/randwrite-4k-qd1", ("--rw=randwrite", "--bs=4k", "--iodepth=1"), "IOPS", {"qemu-mirror": 2.0}),
    Case("mirror/randwrite-4k-qd32", ("--rw=randwrite", "--bs=4k", "--iodepth=32"), "IOPS", {"qemu-mirror": 2.5}),
    Case("mirror/write-1m", ("--rw=write", "--bs=1m", "--iodepth=4"), "MiB/s", {"qemu-mirror": 2.0}),
    Case("mirror/fsync-4k", ("--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"), "IOPS", {}),
)


@dataclass(frozen=True)
class Measured:
    rate: float
    """In the case's unit."""
    p99_ms: float
    """Of a write's completion; where each is followed by a flush, of the flush."""


def rows(root: Path, direct: bool = False, rounds: int = ROUNDS, seconds: float = SECONDS) -> Iterator[Row]:
    """`direct`: also the mirror past the page cache, without bars."""
    mirror_peers.must_exist()
    kind = filesystem(root)
    if kind == "tmpfs":
        sys.exit(f"bench: {root} is on tmpfs; the mirror must be measured on a real file system")
    with ExitStack() as stack:
        devices = [
            stack.enter_context(served)
            for served in (
                mirror_peers.mirror(root),
                mirror_peers.qemu_mirror(root),
                mirror_peers.qemu_mirror(root, "unix"),
                mirror_peers.nbdkit_file(root),
                mirror_peers.bare_chain(root),
                *([mirror_peers.mirror(root, "direct")] if direct else []),
            )
        ]
        for case in CASES:
            able = [device for device in devices if device.name != "bare-chain" or case is CASES[0]]
            yield from compared(case, measure(case, able, rounds, seconds))
        for device in devices:
            must_be_equal(device)


def measure(case: Case, devices: list[Served], rounds: int, seconds: float) -> dict[str, list[Measured]]:
    """Device -> one measurement of each round."""
    measured: dict[str, list[Measured]] = {device.name: [] for device in devices}
    for number in range(rounds):
        for device in devices:
            measured[device.name].append(fio(case, device, seconds, seed=1000 + number))
            device.write_out()
    return measured


def fio(case: Case, device: Served, seconds: float, seed: int) -> Measured:
    command = [
        "fio", "--name=bench", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={device.socket}",
        f"--size={SPAN_MIB}m", "--time_based", f"--runtime={seconds:g}", "--ramp_time=0.3",
        "--randrepeat=1", f"--randseed={seed}", "--norandommap", "--refill_buffers=0", "--output-format=json",
        *case.options,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    if job["error"]:
        raise RuntimeError(f"{case.name} on {device.name}: fio says {os.strerror(job['error'])}")
    write = job["write"]
    flushed = "--fsync=1" in case.options
    latency = job["sync"]["lat_ns"] if flushed else write["clat_ns"]
    rate = write["iops"] if case.unit == "IOPS" else write["bw_bytes"] / (1 << 20)
    return Measured(rate, latency["percentile"][PERCENTILE] / 1e6)


def compared(case: Case, measured: dict[str, list[Measured]]) -> Iterator[Row]:
    ours = measured["mirror"]
    for peer, theirs in measured.items():
        if peer == "mirror":
            continue
        bar = case.bars.get(peer)
        yield row(
            case.name, case.unit, [one.rate for one in ours], peer, [one.rate for one in theirs], bar, Bound.AT_LEAST
        )
        yield row(f"{case.name}-p99", "ms", [one.p99_ms for one in ours], peer, [one.p99_ms for one in theirs], None)


def must_be_equal(device: Served) -> None:
    """A mirror that is fast because it does not mirror is none."""
    device.settled()
    device.write_out()
    for replica in device.files[1:]:
        with device.files[0].open("rb") as one, replica.open("rb") as other:
            for at in range(SPAN_MIB):
                if one.read(1 << 20) != other.read(1 << 20):
                    raise RuntimeError(f"{device.name}: its replicas differ in MiB {at}")


def filesystem(path: Path) -> str:
    done = subprocess.run(["stat", "-f", "-c", "%T", str(path)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.mirror")
    parser.add_argument("--direct", action="store_true", help="also the mirror with backing_io = direct")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="4 or more")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each measurement")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="mirrorha-bench-", dir=WORKPLACE) as directory:
        print(table(list(rows(Path(directory), options.direct, options.rounds, options.seconds))))


if __name__ == "__main__":
    main()
