"""Times commands from inside a host's namespaces, several ones in turn. Run by path: `python3 stopwatch.py < cases`.

Standard input: {"runs": n, "cases": {name: {"argv": […], "env": {…}, "before": {…}, "after": {…}, "announces": ip,
"nic": nic}}}, where before and after are cases without timing. Standard output: {name: [{"wall_ms", "cpu_ms",
"announced_ms"}, …]}: from exec to exit, CPU with all children waited for, and from exec to the first gratuitous ARP
frame for the address in "announces" (as the interface sends it).
"""

from __future__ import annotations

import json
import os
import resource
import socket
import struct
import sys
import time
from typing import Any

SO_TIMESTAMPNS = 35


def spawn(case: dict[str, Any]) -> int:
    null = os.open(os.devnull, os.O_RDWR)
    actions = [(os.POSIX_SPAWN_DUP2, null, number) for number in (0, 1, 2)]
    try:
        return os.posix_spawn(case["argv"][0], case["argv"], case["env"], file_actions=actions)
    finally:
        os.close(null)


def finish(case: dict[str, Any]) -> None:
    os.waitpid(spawn(case), 0)


def first_announcement(wire: socket.socket, ip: str) -> float:
    """Time (as time.time()) of the first frame queued whose sender and target address are `ip`."""
    wanted = socket.inet_aton(ip)
    wire.settimeout(5)
    while True:
        frame, extra, _, _ = wire.recvmsg(2048, 256)
        if frame[28:32] == wanted == frame[38:42]:
            seconds, nanoseconds = struct.unpack("@ll", extra[0][2])
            return float(seconds + nanoseconds / 1e9)


def timed(case: dict[str, Any]) -> dict[str, float]:
    wire = None
    if "announces" in case:
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        wire.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        wire.bind((case["nic"], 3))
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin, begin_clock = time.monotonic(), time.time()
    finish(case)
    wall = time.monotonic() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
    result = {"wall_ms": wall * 1000, "cpu_ms": cpu * 1000}
    if wire is not None:
        result["announced_ms"] = (first_announcement(wire, case["announces"]) - begin_clock) * 1000
        wire.close()
    return result


def main() -> None:
    order = json.load(sys.stdin)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in order["cases"]}
    for _ in range(order["runs"]):
        for name, case in order["cases"].items():
            if "before" in case:
                finish(case["before"])
            results[name].append(timed(case))
            if "after" in case:
                finish(case["after"])
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
