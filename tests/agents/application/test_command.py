"""A long-running program, started and supervised directly."""

from __future__ import annotations

import os
import signal

import pytest

from tests.agents.application.codes import ERROR, NOT_RUNNING, OK
from tests.agents.cell import Cell, Make, wait_until


def test_a_command_lives_through_start_monitor_and_stop(make: Make, place: Cell, number: int) -> None:
    app = make(command=f"sleep {number}")
    assert app("monitor", is_probe=True).code == NOT_RUNNING
    assert app("start").code == OK
    assert app("start").code == OK
    assert len(place.named(f"sleep {number}")) == 1
    assert app("monitor").code == app("monitor", is_probe=True).code == OK
    assert app("stop").code == app("stop").code == OK
    assert app("monitor").code == app("monitor", is_probe=True).code == NOT_RUNNING
    assert not place.processes()
    assert not app.record().exists()


def test_a_command_outlives_the_kill_of_the_agents_group_and_holds_none_of_its_pipes(make: Make, number: int) -> None:
    app = make(command=f"sleep {number}")
    started = app.begin("start")
    started.communicate(timeout=10)
    with pytest.raises(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    assert app("monitor").code == OK


def test_a_command_has_a_session_no_terminal_and_no_foreign_descriptors(make: Make, place: Cell, number: int) -> None:
    app = make(command=f"sleep {number}")
    app("start")
    pid = place.named(f"sleep {number}")[0].pid
    assert place.run("ps", "-o", "sid=,pgid=,tty=", "-p", str(pid)).split() == [str(pid), str(pid), "?"]
    streams = place.run("sh", "-c", f"for n in /proc/{pid}/fd/*; do readlink $n; done").split()
    assert streams == ["/dev/null"] * 3
    blocked = place.run("grep", "-E", "^Sig(Blk|Ign)", f"/proc/{pid}/status").split()
    # signals 32 and 33 belong to the C library; whoever started us may have had them ignored, and no program can tell
    assert [int(word, 16) & ~(0b11 << 31) for word in blocked[1::2]] == [0, 0]


def test_a_command_runs_as_its_user_in_its_directory_with_its_environment(make: Make, place: Cell) -> None:
    program = place.script("show", "id -un; id -gn; pwd; umask; echo $GREETING; echo $HOME; sleep 30")
    log = place.directory / "show.log"
    (place.directory / "work").mkdir(exist_ok=True)
    app = make(
        command=program,
        user="nobody",
        group="daemon",
        workdir=str(place.directory / "work"),
        env="GREETING='good day' OTHER=1",
        umask="027",
        logfile=str(log),
        process_name="show",
    )
    assert app("start").code == OK
    shown = log.read_text().splitlines()
    assert shown == ["nobody", "daemon", str(place.directory / "work"), "0027", "good day", "/nonexistent"]
    assert (log.stat().st_uid, log.stat().st_mode & 0o777) == (65534, 0o640)


def test_a_command_that_needs_no_shell_gets_none(make: Make, place: Cell, number: int) -> None:
    plain, shell = make(command=f"'sleep' {number}"), make(command=f"A=1; sleep {number}; echo")
    plain("start")
    assert [process.command for process in place.named(f"{number}")] == [f"sleep {number}"]
    shell("start")
    assert f"/bin/sh -c A=1; sleep {number}; echo" in {process.command for process in place.named(f"{number}")}
    assert shell("stop").code == OK
    assert plain("monitor").code == OK


def test_a_command_that_ends_at_once_fails_the_start_with_its_last_words(make: Make, place: Cell) -> None:
    log = place.directory / "failing.log"
    log.write_text("an older line\n")
    app = make(command="sh -c 'echo starting; echo cannot bind port 80 >&2; exit 4'", logfile=str(log))
    done = app("start")
    assert (done.code, done.reason) == (ERROR, "command ended with 4 before it was ready: cannot bind port 80")
    assert app("stop").code == OK


def test_a_command_that_moves_to_the_background_is_told_apart_from_one_that_failed(make: Make) -> None:
    done = make(command="true")("start")
    assert done.code == ERROR
    assert "give pidfile or process_name" in done.reason


def test_a_daemon_that_forks_twice_is_followed_by_its_pid_file(make: Make, place: Cell, number: int) -> None:
    pidfile = place.directory / f"daemon{number}.pid"
    daemon = f"setsid sleep {number} </dev/null >/dev/null 2>&1 & echo $! > {pidfile}"
    app = make(command=place.script("daemon", f"({daemon})"), pidfile=str(pidfile))
    assert app("start").code == OK
    assert app("monitor").code == app("monitor", is_probe=True).code == app("start").code == OK
    place.run("kill", "-9", pidfile.read_text().strip())
    wait_until(lambda: not place.processes())
    assert app("monitor").code == NOT_RUNNING
    assert app("start").code == OK
    assert app("stop").code == OK
    assert not place.processes()


def test_a_daemon_that_forks_twice_is_found_again_without_pid_file_or_name(
    make: Make, place: Cell, number: int
) -> None:
    app = make(
        command=place.script("hidden", f"(setsid setsid sleep {number} & ) </dev/null >/dev/null 2>&1; sleep 30")
    )
    assert app("start").code == OK
    wait_until(lambda: any(one.parent == 1 for one in place.named(f"sleep {number}")))
    for process in place.processes():
        if f"sleep {number}" != process.command:
            place.run("kill", "-9", str(process.pid))
    done = app("monitor")
    assert done.code == ERROR
    assert "left: " in done.reason
    assert "(sleep)" in done.reason
    assert app("stop").code == OK
    assert not place.processes()


def test_what_a_killed_command_left_is_stopped_before_the_next_start(make: Make, place: Cell, number: int) -> None:
    app = make(command=f"sh -c 'sleep {number} & sleep 200'")
    app("start")
    old = {process.pid for process in place.processes()}
    place.run("kill", "-9", str(next(one.pid for one in place.processes() if one.command.startswith("sh -c"))))
    assert app("monitor").code == ERROR
    assert app("start").code == OK
    assert not old & {process.pid for process in place.processes()}
    assert len(place.named(f"sleep {number}")) == 2  # the shell and its child


def test_two_starts_at_once_start_one_application(make: Make, place: Cell, number: int) -> None:
    app = make(command=f"sleep {number}")
    both = [app.begin("start") for _ in range(2)]
    assert [process.wait(10) for process in both] == [OK, OK]
    for process in both:
        process.communicate()
    assert len(place.named(f"sleep {number}")) == 1


def test_a_process_name_cut_off_within_a_character_does_not_disturb_the_next_start(
    make: Make, place: Cell, number: int
) -> None:
    (place.directory / "a数据库服务器").symlink_to("/usr/bin/sleep")
    program = place.directory / "a数据库服务器"
    app = make(command=place.script(f"parent{number}", f"{program} {number} & wait"))
    app.surroundings["HA_LOGFACILITY"] = "daemon"  # syslog takes no halves of characters
    assert app("start").code == OK
    place.run("pkill", "-9", "-f", f"parent{number}")
    ran = app("monitor")
    assert (ran.code, "left: " in ran.reason) == (ERROR, True)
    ran = app("start")
    assert (ran.code, ran.reason) == (OK, "")
    assert len(place.named(f" {number}")) == 1
