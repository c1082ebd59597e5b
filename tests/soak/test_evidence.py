from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.soak import evidence
from tests.soak.__main__ import CASES
from tests.soak.evidence import Case, Figures


class Power:
    """A case whose rounds can be interrupted."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.ran: list[int] = []

    def run(self, first: int, count: int) -> Iterator[Figures]:
        for number in range(first, first + count):
            assert number != self.fails_at, "the address was active twice"
            self.ran.append(number)
            yield {"round": number}


def case(power: Power) -> Case:
    def summary(figures: Iterable[Figures]) -> Figures:
        return {"rounds": len(list(figures))}

    return Case("cuts", "nothing is lost", ("src/*.py",), 4, power.run, summary)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "agent.py").write_text("one", encoding="utf-8")
    return tmp_path


def run(power: Power, project: Path) -> Figures:
    return evidence.run(case(power), lambda _: None, project)


def test_a_finished_run_counts_until_a_covered_file_changes(project: Path) -> None:
    assert evidence.state(case(Power()), project) == "missing"
    assert run(Power(), project)["summary"] == {"rounds": 4}
    (project / "other.py").write_text("not covered", encoding="utf-8")
    assert evidence.state(case(Power()), project) == "counts"
    (project / "src" / "agent.py").write_text("two", encoding="utf-8")
    assert evidence.state(case(Power()), project) == "stale"


def test_an_interrupted_run_goes_on_where_it_stopped(project: Path) -> None:
    with pytest.raises(AssertionError, match="active twice"):
        run(Power(fails_at=2), project)
    assert evidence.state(case(Power()), project) == "missing"
    second = Power()
    assert [figures["round"] for figures in run(second, project)["figures"]] == [0, 1, 2, 3]
    assert second.ran == [2, 3]


def test_a_run_starts_anew_when_the_files_changed_in_between(project: Path) -> None:
    with pytest.raises(AssertionError):
        run(Power(fails_at=2), project)
    (project / "src" / "agent.py").write_text("two", encoding="utf-8")
    second = Power()
    run(second, project)
    assert second.ran == [0, 1, 2, 3]


def test_each_evidence_file_tells_what_was_run_and_on_what() -> None:
    for path in sorted((evidence.PROJECT / evidence.EVIDENCE).glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        known = CASES[content["case"]]
        assert path.stem == known.name
        assert content["command"] == f"make soak CASE={known.name}"
        assert content["rounds"] == len(content["figures"]) == known.rounds
        assert len(content["commit"].removesuffix("+changes")) == 40
        assert content["summary"] == known.summary(content["figures"])
