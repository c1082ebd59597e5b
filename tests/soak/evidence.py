"""Evidence files: what was run, on which state of which files, with what result.

An evidence file counts while the files that it covers are unchanged; their digest stands in it. A run that was
interrupted goes on where it stopped, as long as those files are unchanged too.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
EVIDENCE = Path("docs/evidence")
PROGRESS = Path("build/soak")

Figures = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One long run of `rounds` equal rounds. A round returns its figures, or raises AssertionError and ends the run."""

    name: str
    proves: str
    covers: tuple[str, ...]
    """Globs below the project: the files whose change makes the evidence stale."""
    rounds: int
    run: Callable[[int, int], Iterable[Figures]]
    """(first round, rounds to run) -> the figures of each, as they come."""
    summary: Callable[[list[Figures]], Figures]


def digest(covers: Iterable[str], project: Path = PROJECT) -> str:
    """SHA-256 over the names and contents of the covered files."""
    total = hashlib.sha256()
    paths = {
        path for glob in covers for path in project.glob(glob) if path.is_file() and "__pycache__" not in path.parts
    }
    for path in sorted(paths):
        total.update(str(path.relative_to(project)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def run(case: Case, say: Callable[[str], None], project: Path = PROJECT) -> Figures:
    """Run what is missing of `case` and write its evidence file; returns what stands in it."""
    covered = digest(case.covers, project)
    progress = _read(project / PROGRESS / f"{case.name}.json")
    done: list[Figures] = progress["figures"] if progress.get("covered") == covered else []
    seconds = float(progress["seconds"]) if done else 0.0
    if done:
        say(f"{case.name}: going on after round {len(done)} of {case.rounds}")
    start = time.monotonic()
    for figures in case.run(len(done), case.rounds - len(done)) if len(done) < case.rounds else ():
        done.append(figures)
        elapsed = round(seconds + time.monotonic() - start, 1)
        _write(project / PROGRESS / f"{case.name}.json", {"covered": covered, "seconds": elapsed, "figures": done})
        say(f"{case.name}: round {len(done)} of {case.rounds}: {json.dumps(figures)}")
    evidence = {
        "case": case.name,
        "proves": case.proves,
        "command": f"make soak CASE={case.name}",
        "commit": _commit(project, case.covers),
        "date": time.strftime("%Y-%m-%d"),
        "rounds": len(done),
        "seconds": round(seconds + time.monotonic() - start, 1),
        "summary": case.summary(done),
        "covers": list(case.covers),
        "covered": covered,
        "figures": done,
    }
    _write(project / EVIDENCE / f"{case.name}.json", evidence)
    return evidence


def state(case: Case, project: Path = PROJECT) -> str:
    """One word on the evidence of `case`: "counts", "stale" or "missing"."""
    evidence = _read(project / EVIDENCE / f"{case.name}.json")
    if not evidence:
        return "missing"
    return "counts" if evidence.get("covered") == digest(case.covers, project) else "stale"


def _commit(project: Path, covers: Iterable[str]) -> str:
    """The commit, with "+changes" when a covered file differs from it."""
    result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=False)
    status = ["git", "status", "--porcelain", "--", *(f":(glob){glob}" for glob in covers)]
    changed = subprocess.run(status, cwd=project, capture_output=True, text=True, check=False)
    return (result.stdout.strip() or "none") + ("+changes" if changed.stdout.strip() else "")


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)
