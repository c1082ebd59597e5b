"""What cannot run, and what the agent does when its own state is lost."""

from __future__ import annotations

import pytest

from tests.agents.application.codes import CONFIGURED, ERROR, INSTALLED, NOT_RUNNING, OK
from tests.agents.cell import Cell, Make


@pytest.mark.parametrize(
    ("parameters", "start", "word"),
    [
        ({"command": "/no/such/program"}, INSTALLED, "/no/such/program"),
        ({"command": "sleep 9", "user": "nosuchuser"}, INSTALLED, "nosuchuser"),
        ({"command": "sleep 9", "group": "nosuchgroup"}, INSTALLED, "nosuchgroup"),
        ({"command": "sleep 9", "workdir": "/no/such/place"}, INSTALLED, "/no/such/place"),
        ({"command": "sleep 9", "logfile": "/proc/no/log"}, INSTALLED, "/proc/no/log"),
        ({"command": "sleep 9", "monitor_script": "/no/such/check"}, INSTALLED, "/no/such/check"),
        ({}, CONFIGURED, "command"),
        ({"command": "sleep 9", "start_script": "true"}, CONFIGURED, "start_script"),
        ({"start_script": "true"}, CONFIGURED, "monitor_script"),
        ({"command": "sleep '9"}, CONFIGURED, "quotation"),
        ({"command": "sleep 9", "stop_signal": "NONE"}, CONFIGURED, "stop_signal"),
        ({"command": "sleep 9", "monitor_rc_map": "0=5"}, CONFIGURED, "monitor_rc_map"),
        ({"command": "sleep 9", "workdir": "relative"}, CONFIGURED, "workdir"),
    ],
)
def test_what_cannot_run_is_refused_by_start_and_harmless_elsewhere(
    make: Make, place: Cell, parameters: dict[str, str], start: int, word: str
) -> None:
    app = make(**parameters)
    done = app("start")
    assert done.code == start
    assert word in done.reason
    assert app("monitor", is_probe=True).code == NOT_RUNNING
    assert app("stop").code == OK
    assert not place.processes()


def test_a_state_directory_that_is_lost_fails_the_start_and_starts_nothing(
    make: Make, place: Cell, number: int
) -> None:
    app = make(command=f"sleep {number}")
    app.run_directory.rmdir()
    app.run_directory.write_text("a file in its place")
    done = app("start")
    assert done.code == ERROR
    assert "cannot be opened" in done.reason
    assert not place.processes()
    assert app("stop").code == OK


def test_a_lost_record_is_made_good_by_the_mark(make: Make, place: Cell, number: int) -> None:
    app = make(command=f"sleep {number}")
    app("start")
    app.record().unlink()
    assert app("monitor").code == ERROR
    assert app("start").code == OK
    assert len(place.named(f"sleep {number}")) == 1
    assert app("stop").code == OK
    assert not place.processes()
