"""Whom a stop must not touch."""

from __future__ import annotations

import os
import re

from tests.agents.application.codes import ERROR, NOT_RUNNING, OK
from tests.agents.cell import Cell, Make, wait_until


def test_a_reused_pid_is_not_killed(make: Make, place: Cell, number: int) -> None:
    app = make(command=f"sleep {number}")
    app("start")
    victim = place.spawn("sleep", f"{number}7")
    wait_until(lambda: place.named(f"{number}7"))
    pid = place.named(f"{number}7")[0].pid
    text = app.record().read_text()
    leader, ticks = re.findall(r"leader=(\d+) (\d+)", text)[0]
    app.record().write_text(text.replace(f"leader={leader} {ticks}", f"leader={pid} {ticks}"))
    assert app("monitor").code == ERROR  # the real one is still there, by its mark
    assert app("stop").code == OK
    assert [process.pid for process in place.processes()] == [pid]
    victim.kill()


def test_a_process_of_another_user_does_not_answer_to_the_name(make: Make, place: Cell, number: int) -> None:
    name = f"db{number}"
    (place.directory / name).symlink_to("/usr/bin/sleep")
    program = str(place.directory / name)
    theirs = place.spawn(program, "300", user="daemon")
    app = make(command=f"{program} 400", process_name=name, user="nobody")
    wait_until(lambda: place.named(program))
    assert app("monitor", is_probe=True).code == NOT_RUNNING
    assert app("start").code == OK
    assert app("stop").code == OK
    assert [process.command for process in place.named(program)] == [f"{program} 300"]
    theirs.kill()


def test_two_applications_of_one_name_do_not_stop_each_other(make: Make, place: Cell, number: int) -> None:
    one, two = (make(command=f"sleep {number}", process_name="sleep") for _ in range(2))
    assert one("start").code == OK
    assert two("monitor", is_probe=True).code == NOT_RUNNING
    assert two("start").code == OK
    assert one("stop").code == OK
    assert len(place.named(f"sleep {number}")) == 1
    assert two("monitor").code == OK


def test_a_name_does_not_reach_into_a_container(make: Make, place: Cell, number: int) -> None:
    name = f"boxed{number}"
    program = str(place.directory / name)
    (place.directory / name).symlink_to("/usr/bin/sleep")
    inside = place.spawn("unshare", "--pid", "--fork", program, "300")
    wait_until(lambda: place.named(f"{program} 300"))
    app = make(start_script="true", process_name=name)
    assert app("monitor", is_probe=True).code == NOT_RUNNING
    assert app("stop").code == OK
    assert [one for one in place.named(f"{program} 300") if one.command.startswith(program)]
    inside.kill()


def test_a_stale_pid_file_kills_nobody(make: Make, place: Cell, number: int) -> None:
    pidfile = place.directory / f"stale{number}.pid"
    pidfile.write_text("1\n")
    os.utime(pidfile, (1, 1))
    innocent = place.spawn("sleep", str(number))
    wait_until(lambda: place.named(f"sleep {number}"))
    app = make(start_script="true", pidfile=str(pidfile))
    for pid in (1, place.named(f"sleep {number}")[0].pid):
        pidfile.write_text(f"{pid}\n")
        os.utime(pidfile, (1, 1))
        assert app("monitor", is_probe=True).code == NOT_RUNNING
        assert app("stop").code == OK
        assert place.named(f"sleep {number}")
    innocent.kill()
