from __future__ import annotations

import itertools

import pytest

from agents.ocf.exit_code import DEGRADED, ERR_GENERIC, ERR_INSTALLED, NOT_RUNNING, SUCCESS, OcfExit
from agents.supervision.health import (
    COMPLETE,
    INCOMPLETE,
    NOBODY,
    NOT_ASKED,
    ExitMap,
    Script,
    Verdict,
    doubt,
    judge,
    translate,
)

GOOD = Script(SUCCESS, "ended with 0")
WEAK = Script(DEGRADED, "slow")
BAD = Script(ERR_GENERIC, "ended with 1")
STOPPED = Script(NOT_RUNNING, "ended with 3")
HUNG = Script(None, "hung")
MISSING = Script(None, "not installed", is_missing=True)
SCRIPTS = (None, GOOD, WEAK, BAD, STOPPED, HUNG, MISSING)


def verdict(
    processes: str, script: Script | None, *, left: str = "", was_started: bool = False, is_supervised: bool = False
) -> Verdict:
    return judge(
        processes,
        "fact",
        None if script is None else (lambda: script),
        lambda: left,
        was_started=was_started,
        is_supervised=is_supervised,
    )


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (None, SUCCESS),
        (GOOD, SUCCESS),
        (WEAK, DEGRADED),
        *((script, ERR_GENERIC) for script in (BAD, STOPPED, HUNG, MISSING)),
    ],
)
def test_living_processes_are_never_called_not_running(script: Script | None, expected: OcfExit) -> None:
    assert verdict(COMPLETE, script).exit == expected


def test_no_script_can_make_dead_processes_alive() -> None:
    for script, left in itertools.product(SCRIPTS, ("", "12 (db)")):
        assert verdict(NOBODY, script, left=left).exit == (ERR_GENERIC if left else NOT_RUNNING)
        assert verdict(INCOMPLETE, script, left=left).exit == ERR_GENERIC


@pytest.mark.parametrize("script", SCRIPTS)
def test_not_running_is_said_only_when_nothing_is_left(script: Script | None) -> None:
    for processes, was_started, is_supervised in itertools.product((NOT_ASKED, NOBODY), (True, False), (True, False)):
        found = verdict(processes, script, left="12 (db)", was_started=was_started, is_supervised=is_supervised)
        assert found.exit not in (NOT_RUNNING, ERR_INSTALLED)


@pytest.mark.parametrize(
    ("script", "never", "started"),
    [
        (GOOD, SUCCESS, SUCCESS),
        (STOPPED, NOT_RUNNING, NOT_RUNNING),
        (BAD, NOT_RUNNING, ERR_GENERIC),
        (HUNG, NOT_RUNNING, ERR_GENERIC),
        (MISSING, ERR_INSTALLED, ERR_INSTALLED),
        (None, NOT_RUNNING, NOT_RUNNING),
    ],
)
def test_a_bad_script_means_trouble_only_where_the_application_was_started(
    script: Script | None, never: OcfExit, started: OcfExit
) -> None:
    assert verdict(NOT_ASKED, script).exit == never
    assert verdict(NOT_ASKED, script, was_started=True).exit == started


def test_the_reason_names_what_was_found() -> None:
    assert verdict(NOBODY, GOOD, left="12 (db)").reason == "fact; left: 12 (db)"
    assert verdict(COMPLETE, BAD).reason == "ended with 1"


def test_exit_codes_are_translated_with_a_rest() -> None:
    table = ExitMap("x").convert("0=0, 3=7,*=1")
    assert [translate(table, code) for code in (0, 3, 7, -9)] == [SUCCESS, NOT_RUNNING, ERR_GENERIC, ERR_GENERIC]
    assert translate(ExitMap("x").convert("0=0"), 5) == ERR_GENERIC
    assert translate(ExitMap("x").convert("*=0"), -9) == ERR_GENERIC


@pytest.mark.parametrize("text", ["0", "0=2", "0=6", "x=0", "0=", "256=0", "0=0=0", "²=0"])
def test_a_map_that_would_ban_nodes_or_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be pairs"):
        ExitMap("x").convert(text)


STOP_HUNG = Script(None, "stop hung")
STOP_MISSING = Script(None, "stop missing", is_missing=True)
STOP_FAILED = Script(ERR_GENERIC, "stop failed")


def test_a_stop_is_doubted_when_the_monitor_still_sees_the_application() -> None:
    for stop, monitor, had in itertools.product((None, STOP_HUNG, STOP_FAILED), (GOOD, WEAK), (True, False)):
        assert doubt(stop, monitor, had_processes=had)


def test_a_failed_stop_script_is_forgiven_when_the_monitor_denies_the_application() -> None:
    for stop, monitor in itertools.product((None, STOP_HUNG, STOP_FAILED, STOP_MISSING), (BAD, STOPPED)):
        assert not doubt(stop, monitor, had_processes=False)


def test_a_failed_stop_that_nobody_can_check_is_no_stop() -> None:
    for stop, monitor in itertools.product((STOP_HUNG, STOP_FAILED), (HUNG, MISSING)):
        assert doubt(stop, monitor, had_processes=False)
        assert not doubt(stop, monitor, had_processes=True)
    assert not doubt(None, HUNG, had_processes=False)


def test_where_both_scripts_are_missing_nothing_can_run() -> None:
    assert not doubt(STOP_MISSING, MISSING, had_processes=False)
