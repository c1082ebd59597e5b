"""What the README says of figures is what the evidence says."""

from __future__ import annotations

import json
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]

ROWS = {
    "planned switch": "planned_switch",
    "public cable of the active host pulled": "nic_down",
    "application killed": "application_killed",
    "application hangs": "application_hangs",
    "stop fails, host fenced": "stop_fails",
    "power cut of the active host": "power_cut",
    "partition: the active host survives": "partition",
}


def test_the_waits_in_the_readme_are_those_of_the_evidence() -> None:
    summary = json.loads((PROJECT / "docs/evidence/outages.json").read_text(encoding="utf-8"))["summary"]
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    for words, name in ROWS.items():
        row = f"| {words} | {summary[f'{name}_s_median']:.1f} s | {summary[f'{name}_s_max']:.1f} s |"
        assert row in readme, f"README.md should say: {row}"


def test_every_document_the_readme_points_to_is_there() -> None:
    """Evidence is left out: it is written by a run that must be able to come after this one."""
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    targets = {part.split(")")[0] for part in readme.split("](")[1:]}
    ours = {name for name in targets if "://" not in name and not name.startswith("docs/evidence/")}
    assert [name for name in sorted(ours) if not (PROJECT / name).exists()] == []
