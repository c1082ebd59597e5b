"""Many seeds in parallel, going on where an interrupted campaign stopped."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.simulation import world
from tests.simulation.faults import Fault
from tests.soak.evidence import EVIDENCE, PROJECT, digest

COVERS = ("replication/protocol/*.py", "replication/executor.py", "tests/simulation/*.py")
PROGRESS = Path("build/simulation.json")
CHUNK = 25
"""Seeds that a worker takes at once."""


@dataclass
class Tally:
    """What came out of some seeds."""

    seeds: int = 0
    events: int = 0
    writes: int = 0
    resyncs: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)
    """seed -> report"""

    def add(self, other: Tally) -> None:
        self.seeds += other.seeds
        self.events += other.events
        self.writes += other.writes
        self.resyncs += other.resyncs
        self.faults.update(other.faults)
        self.failures.update(other.failures)

    def summary(self) -> dict[str, Any]:
        return {
            "seeds": self.seeds,
            "failures": len(self.failures),
            "events": self.events,
            "writes_answered": self.writes,
            "resyncs_finished": self.resyncs,
            "faults": {kind.value: self.faults[kind.value] for kind in Fault},
        }


def run_seeds(seeds: Iterable[int]) -> Tally:
    tally = Tally()
    for seed in seeds:
        tally.seeds += 1
        try:
            done = world.run(seed)
        except AssertionError as error:
            tally.failures[seed] = str(error)
            continue
        tally.events += done.events
        tally.writes += done.workload.writes_answered
        tally.resyncs += done.oracle.syncs_finished
        tally.faults.update({kind.value: count for kind, count in done.faults.items()})
    return tally


def run_in_parallel(chunks: list[range], jobs: int, each: Callable[[range, Tally], None]) -> None:
    """`each` hears of every chunk, in the order in which they end."""
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for chunk, tally in pool.imap_unordered(_run_chunk, chunks):
            each(chunk, tally)


def _run_chunk(chunk: range) -> tuple[range, Tally]:
    return chunk, run_seeds(chunk)


def campaign(first: int, count: int, jobs: int, say: Callable[[str], None], project: Path = PROJECT) -> Tally:
    """Run what is missing of these seeds; results of unchanged code count from an earlier call."""
    covered = digest(COVERS, project)
    path = project / PROGRESS
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    done: dict[str, Any] = known["chunks"] if known.get("covered") == covered else {}
    total = Tally()
    missing: list[range] = []
    for start in range(first, first + count, CHUNK):
        chunk = range(start, min(start + CHUNK, first + count))
        if _name(chunk) in done:
            total.add(_tally_of(done[_name(chunk)]))
        else:
            missing.append(chunk)
    if total.seeds:
        say(f"{total.seeds} of {count} seeds were run before on the same code")
    said = time.monotonic()

    def each(chunk: range, tally: Tally) -> None:
        nonlocal said
        total.add(tally)
        for report in tally.failures.values():
            say(report)
        if not tally.failures:
            done[_name(chunk)] = _content_of(tally)
        if time.monotonic() - said > 10 or total.seeds == count:
            said = time.monotonic()
            _write(path, {"covered": covered, "chunks": done})
            say(f"{total.seeds} of {count} seeds, {len(total.failures)} failures")

    if missing:
        run_in_parallel(missing, jobs, each)
    return total


def write_evidence(tally: Tally, first: int, seconds: float, command: str, project: Path = PROJECT) -> None:
    _write(
        project / EVIDENCE / "simulation.json",
        {
            "case": "simulation",
            "proves": "Two mirrors in deterministic simulation keep every promise through power cuts at every point,"
            " torn writes, cuts, resets, pauses, disk errors and the operators' mistakes.",
            "command": command,
            "commit": _commit(project),
            "date": time.strftime("%Y-%m-%d"),
            "first_seed": first,
            "seconds": round(seconds, 1),
            "summary": tally.summary(),
            "covers": list(COVERS),
            "covered": digest(COVERS, project),
        },
    )


def _name(chunk: range) -> str:
    return f"{chunk.start}-{chunk.stop - 1}"


def _content_of(tally: Tally) -> dict[str, Any]:
    return {
        "seeds": tally.seeds,
        "events": tally.events,
        "writes": tally.writes,
        "resyncs": tally.resyncs,
        "faults": dict(tally.faults),
    }


def _tally_of(content: dict[str, Any]) -> Tally:
    return Tally(**{**content, "faults": Counter(content["faults"])})


def _commit(project: Path) -> str:
    """The commit, with "+changes" when a covered file differs from it."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=False)
    status = ["git", "status", "--porcelain", "--", *(f":(glob){glob}" for glob in COVERS)]
    changed = subprocess.run(status, cwd=project, capture_output=True, text=True, check=False)
    return (head.stdout.strip() or "none") + ("+changes" if changed.stdout.strip() else "")


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)
