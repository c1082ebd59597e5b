"""Start, stop and monitor scripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.agents.application.codes import DEGRADED, ERROR, NOT_RUNNING, OK
from tests.agents.cell import Cell, Make, Subject, kill_group, wait_until


def scripted(make: Make, place: Cell, number: int, **parameters: str) -> Subject:
    """An application that only its scripts know: its daemon hides from session, parentage and mark."""
    flag = place.directory / f"flag{number}"
    hide = f"env -i setsid setsid sh -c 'touch {flag}; while [ -e {flag} ]; do sleep 0.02; done'"
    wanted = {
        "start_script": place.script(f"start{number}", f"({hide} & ) </dev/null >/dev/null 2>&1; echo begun"),
        "stop_script": place.script(f"stop{number}", f"rm -f {flag}"),
        "monitor_script": place.script(f"monitor{number}", f"[ -e {flag} ] || {{ echo no flag; exit 3; }}"),
        **parameters,
    }
    return make(**wanted)


def test_scripts_alone_can_run_an_application(make: Make, place: Cell, number: int) -> None:
    app = scripted(make, place, number)
    assert app("monitor", is_probe=True).code == NOT_RUNNING
    assert app("stop").code == OK
    assert app("start").code == app("start").code == OK
    assert app("monitor").code == app("monitor", is_probe=True).code == OK
    assert app("stop").code == app("stop").code == OK
    assert app("monitor", is_probe=True).code == NOT_RUNNING


def test_a_failed_start_script_speaks_through_the_reason(make: Make, place: Cell) -> None:
    failing = place.script("failing", "echo checking; echo licence expired > /dev/stderr; exit 5")
    app = make(start_script=failing, monitor_script="false", user="nobody")
    done = app("start")
    assert (done.code, done.reason) == (ERROR, "start script ended with 5: licence expired")
    assert app("stop").code == OK


def test_an_application_that_never_gets_ready_fails_the_start_and_not_the_monitor(
    make: Make, place: Cell, number: int
) -> None:
    app = make(
        command=f"sleep {number}",
        monitor_script=place.script("never", "echo still replaying the log; exit 1"),
        ready_wait="300ms",
    )
    done = app("start")
    assert done.code == ERROR
    assert done.reason == "not ready after 0.3 s: monitor script ended with 1: still replaying the log"
    assert app("monitor").code == ERROR
    assert app("stop").code == OK
    assert not place.processes()


def test_start_waits_until_the_monitor_script_agrees(make: Make, place: Cell, number: int) -> None:
    ready = place.directory / f"ready{number}"
    app = make(
        command=f"sh -c 'sleep 0.4; touch {ready}; exec sleep {number}'",
        monitor_script=f"test -e {ready}",
    )
    done = app("start")
    assert done.code == OK
    assert done.seconds >= 0.4


def test_the_starts_own_deadline_ends_the_wait_with_a_reason(make: Make, number: int) -> None:
    done = make(command=f"sleep {number}", monitor_script="sh -c 'echo port closed; exit 1'")("start", timeout_s=2)
    assert done.code == ERROR
    assert "port closed" in done.reason
    assert done.seconds < 1.9


def test_a_hung_monitor_script_is_killed_with_its_group(make: Make, place: Cell, number: int) -> None:
    switch = place.directory / f"hang{number}"
    body = f"[ -e {switch} ] || exit 0; echo asking; sleep {number}7 & sleep {number}8"
    app = make(command=f"sleep {number}", monitor_script=place.script("hanging", body), monitor_timeout="300ms")
    app("start")
    switch.touch()
    done = app("monitor")
    assert (done.code, done.reason) == (ERROR, "monitor script hung, no end within 0.3 s: asking")
    assert {process.command for process in place.processes()} == {f"sleep {number}"}
    app.parameters["monitor_timeout"] = ""
    assert "monitor script hung" in app("monitor", timeout_s=1).reason


def test_a_monitor_script_of_a_killed_monitor_does_not_stay(make: Make, place: Cell, number: int) -> None:
    switch = place.directory / f"hang{number}"
    app = make(
        command=f"sleep {number}",
        monitor_script=place.script("hanging2", f"[ ! -e {switch} ] || sleep {number}8"),
        monitor_timeout="300ms",
    )
    app("start")
    switch.touch()
    app.parameters["monitor_timeout"] = "30s"
    monitor = app.begin("monitor", timeout_s=60)
    wait_until(lambda: place.named(f"sleep {number}8"))
    kill_group(monitor)
    assert place.named(f"sleep {number}8")
    switch.unlink()
    assert app("monitor").code == OK
    assert not place.named(f"sleep {number}8")


def test_a_monitor_script_that_fails_where_nothing_was_started_is_no_second_copy(make: Make, place: Cell) -> None:
    broken = place.script("broken", "exit 1")
    hanging = place.script("hanging3", "sleep 100")
    for monitor in (broken, hanging, "/nonexistent/check"):
        app = make(start_script="true", monitor_script=monitor, monitor_timeout="200ms")
        assert app("monitor", is_probe=True).code == NOT_RUNNING
        assert app("stop").code == OK


def test_exit_codes_of_the_monitor_script_are_translated(make: Make, place: Cell, number: int) -> None:
    answer = place.directory / f"answer{number}"
    app = make(
        command=f"sleep {number}",
        monitor_script=place.script("answering", f"exit $(cat {answer})"),
        monitor_rc_map="0=0,4=190,3=7,*=1",
    )
    answer.write_text("0")
    app("start")
    for code, expected in (("0", OK), ("4", DEGRADED), ("3", ERROR), ("9", ERROR)):
        answer.write_text(code)
        assert app("monitor").code == expected


def test_a_monitor_script_never_makes_up_for_a_dead_process(make: Make, place: Cell, number: int) -> None:
    app = make(command=f"sleep {number}", monitor_script="true")
    app("start")
    place.run("kill", "-9", str(place.named(f"sleep {number}")[0].pid))
    wait_until(lambda: not place.processes())
    assert app("monitor").code == NOT_RUNNING


def test_too_few_processes_are_an_error_and_none_is_not_running(make: Make, place: Cell, number: int) -> None:
    name = f"worker{number}"
    (place.directory / name).symlink_to("/usr/bin/sleep")
    program = str(place.directory / name)
    workers = f"for n in 1 2 3; do {program} 50 & done </dev/null >/dev/null 2>&1"
    app = make(start_script=place.script("workers", workers), process_name=name, process_min="3")
    assert app("start").code == app("monitor").code == OK
    place.run("kill", "-9", str(place.named(f"{program} 50")[0].pid))
    wait_until(lambda: len(place.named(f"{program} 50")) == 2)
    done = app("monitor")
    assert (done.code, done.reason) == (ERROR, f"2 of 3 processes called {name} of user root found")
    place.run("pkill", "-9", "-f", f"{program} 50")
    wait_until(lambda: not place.named(f"{program} 50"))
    assert app("monitor").code == NOT_RUNNING
    assert app("stop").code == OK


def test_nothing_to_stop_means_no_stop_script(make: Make, place: Cell, number: int) -> None:
    trace = place.directory / f"ran{number}"
    app = make(command=f"sleep {number}", stop_script=f"touch {trace}")
    assert app("stop").code == OK
    assert not trace.exists()
    app("start")
    assert app("stop").code == OK
    assert trace.exists()


@pytest.mark.parametrize("body", ["echo no idea; exit 3", "sleep 100", "kill -9 $$"])
def test_a_failed_stop_script_does_not_matter_once_the_application_has_ended(
    make: Make, place: Cell, number: int, body: str
) -> None:
    app = make(command=f"sleep {number}", stop_script=place.script("bad", body), timeout_s=2)
    app("start")
    done = app("stop")
    assert (done.code, done.reason) == (OK, "")
    assert done.seconds < 1.9
    assert "nevertheless" in app.log.splitlines()[-1]
    assert not place.processes()


def test_a_failed_stop_of_an_application_that_only_scripts_know_is_a_failed_stop(
    make: Make, place: Cell, number: int
) -> None:
    app = scripted(make, place, number, stop_script=place.script("useless", "echo cannot connect; exit 1"))
    app("start")
    done = app("stop")
    assert done.code == ERROR
    assert "still runs" in done.reason
    assert "cannot connect" in done.reason
    app.parameters["stop_script"] = str(place.directory / f"stop{number}")
    assert app("stop").code == OK


def test_a_stop_script_that_only_claims_success_is_not_believed(make: Make, place: Cell, number: int) -> None:
    app = scripted(make, place, number, stop_script="true")
    app("start")
    assert app("stop").code == ERROR
    app.parameters["stop_script"] = ""
    assert app("stop").code == ERROR


def test_stop_works_when_scripts_directory_and_user_have_vanished(make: Make, place: Cell, number: int) -> None:
    work = place.directory / f"work{number}"
    work.mkdir()
    stop, monitor = (place.script(f"{name}{number}", "exit 0") for name in ("stop", "check"))
    app = make(command=f"sleep {number}", stop_script=stop, monitor_script=monitor, workdir=str(work))
    assert app("start").code == OK
    work.rmdir()
    for script in (stop, monitor):
        Path(script).unlink()
    app.parameters["user"] = "vanished"
    assert app("stop").code == OK
    assert not place.processes()
    assert app("stop").code == OK


@pytest.mark.parametrize("trouble", ["echo cannot tell; exit 1", "sleep 100"])
@pytest.mark.parametrize("met_by", ["probe", "start"])
def test_an_application_found_running_is_stopped_even_when_its_monitor_fails_or_hangs_later(
    make: Make, place: Cell, number: int, trouble: str, met_by: str
) -> None:
    app = scripted(make, place, number)
    flag = place.directory / f"flag{number}"
    place.run(str(place.directory / f"start{number}"))
    wait_until(flag.exists)
    assert (app("monitor", is_probe=True) if met_by == "probe" else app("start")).code == OK
    app.parameters["monitor_script"] = place.script(f"sick{number}", trouble)
    app("stop", timeout_s=3)
    assert not flag.exists(), "the stop script was never asked, and the application runs on two nodes soon"
