"""One seed, to look at; or many, in parallel.

python -m tests.simulation --seed N [--until EVENT] [--verbose]
python -m tests.simulation run --seeds N [--first K] [--jobs J] [--evidence]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

from tests.simulation import campaign
from tests.simulation.world import World


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("do", nargs="?", choices=["run"], help="many seeds instead of one")
    parser.add_argument("--seed", type=int, help="the one seed to run")
    parser.add_argument("--until", type=int, metavar="EVENT", help="stop after this event")
    parser.add_argument("--verbose", action="store_true", help="say everything that happens")
    parser.add_argument("--seeds", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (all cores)")
    parser.add_argument("--evidence", action="store_true", help="write docs/evidence/simulation.json")
    options = parser.parse_args()
    if options.do is None and options.seed is None:
        parser.error("either --seed N, or: run --seeds N")
    if options.do is None:
        one(options.seed, options.until, options.verbose)
    else:
        many(options)


def one(seed: int, until: int | None, verbose: bool) -> None:
    world = World(seed, print_line=print if verbose else None)
    try:
        world.run(until)
    except Exception as error:
        print(world.report(error), file=sys.stderr)
        if verbose:
            raise
        sys.exit(1)
    print(f"seed {seed}: {world.events} events, {world.describe()}")
    print(json.dumps({kind.value: count for kind, count in sorted(world.faults.items(), key=lambda kv: kv[0].value)}))


def many(options: argparse.Namespace) -> None:
    start = time.monotonic()
    tally = campaign.campaign(options.first, options.seeds, options.jobs, lambda line: print(line, flush=True))
    print(json.dumps(tally.summary(), indent=1))
    if options.evidence and not tally.failures:
        command = f"make simulate SEEDS={options.seeds}"
        campaign.write_evidence(tally, options.first, time.monotonic() - start, command)
    if tally.failures:
        sys.exit(f"failed seeds: {sorted(tally.failures)}")


if __name__ == "__main__":
    main()
