"""`make soak` and `make soak-status`."""

from __future__ import annotations

import argparse
import sys

from tests.soak import (
    evidence,
    fresh_clone,
    killed_labs,
    mirror_double_cuts,
    mirror_faults,
    mirror_power_cuts,
    outages,
    power_cuts,
)

MODULES = (power_cuts, outages, killed_labs, mirror_power_cuts, mirror_double_cuts, fresh_clone)
CASES = {case.name: case for case in (*(module.CASE for module in MODULES), *mirror_faults.CASES)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=evidence.__doc__)
    parser.add_argument("do", choices=["run", "status"])
    parser.add_argument(
        "case", nargs="?", choices=sorted(CASES), help="default: every case whose evidence does not count"
    )
    options = parser.parse_args()
    chosen = [CASES[options.case]] if options.case else list(CASES.values())
    if options.do == "status":
        for case in chosen:
            print(f"{evidence.state(case):8} {case.name:18} {case.proves}")
        return
    for case in chosen:
        if options.case is None and evidence.state(case) == "counts":
            print(f"{case.name}: its evidence counts; nothing to do")
            continue
        try:
            result = evidence.run(case, lambda line: print(line, flush=True))
        except AssertionError as error:
            sys.exit(f"{case.name}: FAILED: {error}\nrun it again with: make soak CASE={case.name}")
        print(f"{case.name}: {result['summary']}")


if __name__ == "__main__":
    main()
