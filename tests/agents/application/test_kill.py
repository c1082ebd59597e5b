"""The agent is killed at random moments, as a manager's time-out kills it: the next stop finds everything."""

from __future__ import annotations

import random
import time

import pytest

from tests.agents.cell import Cell, Subject, kill_group

ROUNDS = 8
SEED = 20_301


def interrupted(app: Subject, action: str, after_s: float) -> None:
    """Begin an action and kill the agent's group after a while; `time.sleep` is the test here, not a wait."""
    process = app.begin(action)
    time.sleep(after_s)
    kill_group(process)


def applications(place: Cell) -> dict[str, dict[str, str]]:
    family = place.script("family", "(setsid sleep 771 & ) ; sleep 772 & exec sleep 773")
    slow = place.script("slow", "sleep 0.05; (setsid setsid sleep 774 & ) </dev/null >/dev/null 2>&1; sleep 0.05")
    deaf = place.script("deaf", "trap '' TERM; while :; do sleep 0.05; done")
    return {
        "a command with children": {"command": family},
        "a command that ignores TERM": {"command": deaf, "stop_wait": "100ms"},
        "a start script": {
            "start_script": slow,
            "process_name": "sleep",
            "stop_script": place.script("stopping", "sleep 0.05"),
            "monitor_script": "true",
        },
    }


@pytest.mark.parametrize("name", ["a command with children", "a command that ignores TERM", "a start script"])
def test_after_a_kill_at_any_moment_stop_leaves_nothing(place: Cell, name: str) -> None:
    chance = random.Random(f"{SEED} {name}")
    app = Subject(place, "killed", applications(place)[name])
    for turn in range(ROUNDS):
        after = [chance.uniform(0.005, 0.2) for _ in range(2)]
        interrupted(app, "start", after[0])
        if turn % 2:
            if turn % 4 == 1:
                assert app("start").code == 0, f"turn {turn}, killed after {after[0]:.4f} s"
            interrupted(app, "stop", after[1])
        done = app("stop")
        story = f"turn {turn} of seed {SEED}: start killed after {after[0]:.4f} s, stop after {after[1]:.4f} s"
        assert done.code == 0, f"{story}: {done.reason}"
        assert not place.processes(), story
        assert app("monitor").code == 7, story
