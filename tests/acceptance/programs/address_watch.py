"""Says every 50 ms whether this node holds an address: `address_watch.py ADDRESS` prints "<monotonic s> <0 or 1>".

Reads the kernel's own table of local addresses; runs inside a node and ends with it.
"""

from __future__ import annotations

import sys
import time

INTERVAL_S = 0.05


def holds(address: str) -> bool:
    with open("/proc/net/fib_trie", encoding="ascii") as table:
        lines = iter(table)
        return any(line.strip() == f"|-- {address}" and "/32 host LOCAL" in next(lines, "") for line in lines)


def main() -> None:
    address, due = sys.argv[1], time.monotonic()
    while True:
        print(f"{time.monotonic():.4f} {int(holds(address))}", flush=True)
        due += INTERVAL_S
        time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    main()
