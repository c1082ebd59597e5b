"""The simulation itself: one seed is one story, and a report replays it."""

from __future__ import annotations

from pathlib import Path

from tests.simulation.campaign import campaign
from tests.simulation.checkers import InvariantBroken
from tests.simulation.world import World


def lines_of(seed: int) -> list[str]:
    lines: list[str] = []
    World(seed, print_line=lines.append).run()
    return lines


def test_the_same_seed_tells_the_same_story() -> None:
    assert lines_of(7) == lines_of(7)


def test_another_seed_tells_another_story() -> None:
    assert lines_of(7) != lines_of(8)


def test_a_run_can_be_stopped_at_an_event() -> None:
    run = World(7)
    run.run(until_event=100)
    assert run.events == 100


def test_a_report_names_the_invariant_the_event_and_the_line_that_replays_it() -> None:
    run = World(7)
    run.run(until_event=100)
    report = run.report(InvariantBroken("equal", "block 3 differs"))
    assert "invariant equal broken at event 100" in report
    assert "python -m tests.simulation --seed 7 --until 100 --verbose" in report


def test_a_campaign_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    said: list[str] = []
    first = campaign(0, 25, 1, said.append, tmp_path)
    again = campaign(0, 25, 1, said.append, tmp_path)
    assert "25 of 25 seeds were run before on the same code" in said
    assert again.summary() == first.summary()
