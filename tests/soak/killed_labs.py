"""Three laboratories at once, each killed at a random moment: nothing of them may be left on the machine."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.soak.evidence import PROJECT, Case, Figures
from tests.vagrant.leftovers import footprint, leftovers

LABORATORIES = 3
LONGEST_LIFE_S = 8.0
GONE_DEADLINE_S = 15.0

OWNER = """
import time
from vagrant.namespaces.lab import Lab
with Lab(engine="debian") as lab:
    while True:
        lab.power_cut("beta")
        lab.power_on("beta")
        lab.delay("data", 5)
        lab.heal()
        time.sleep(0.2)
"""


def kill_three(seed: int, look: Callable[[], list[str]] = leftovers, longest_life_s: float = LONGEST_LIFE_S) -> Figures:
    """Start three, kill each at its moment, `look` at what is left. Raises AssertionError that lists it."""
    chance = random.Random(seed)
    # a laboratory's owner must not outlive this run, however it ends
    command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", OWNER]
    null = subprocess.DEVNULL
    owners = [subprocess.Popen(command, cwd=PROJECT, stdout=null, stderr=null) for _ in range(LABORATORIES)]
    try:
        return _kill_each(seed, chance, owners, look, longest_life_s)
    finally:
        for owner in owners:
            owner.kill()
            owner.wait()


def _kill_each(
    seed: int,
    chance: random.Random,
    owners: list[subprocess.Popen[bytes]],
    look: Callable[[], list[str]],
    longest_life_s: float,
) -> Figures:
    lives = sorted((chance.uniform(0.05, longest_life_s), index) for index in range(LABORATORIES))
    start = time.monotonic()
    processes: set[int] = set()
    for life_s, index in lives:
        time.sleep(max(0.0, start + life_s - time.monotonic()))
        below = footprint(owners[index].pid)
        processes |= set(below)
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice([owners[index].pid, *below[:2]]), signal.SIGKILL)  # owner, unshare or supervisor
        owners[index].kill()
        owners[index].wait()
    deadline = time.monotonic() + GONE_DEADLINE_S
    while (left := look()) or any(Path(f"/proc/{pid}").exists() for pid in processes):
        assert time.monotonic() < deadline, f"seed {seed}: left behind: {left or processes}"
        time.sleep(0.05)
    return {"seed": seed, "lives_s": [round(life_s, 2) for life_s, _ in lives], "processes": len(processes), "left": 0}


def run(first: int, count: int) -> Iterator[Figures]:
    before = leftovers()
    assert not before, f"this run needs a machine without other laboratories: {before}"
    for seed in range(first, first + count):
        yield kill_three(seed)


def summary(figures: list[Figures]) -> Figures:
    return {
        "laboratories_killed": LABORATORIES * len(figures),
        "processes_ended": sum(int(one["processes"]) for one in figures),
        "left_behind": sum(int(one["left"]) for one in figures),
    }


CASE = Case(
    name="killed-labs",
    proves="Three laboratories at once, killed at random moments, leave no namespace, mount, loop, bridge or process.",
    covers=("vagrant/**/*", "tests/vagrant/leftovers.py", "tests/soak/killed_labs.py"),
    rounds=20,
    run=run,
    summary=summary,
)
