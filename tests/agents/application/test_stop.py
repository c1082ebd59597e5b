"""A stop: how it asks, insists, and goes on where an earlier one was killed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.agents.application.codes import NOT_RUNNING, OK
from tests.agents.cell import Cell, Make, kill_group, wait_until

# ignores every polite request
DEAF = "trap '' TERM INT HUP; while :; do sleep 0.05; done"


def test_an_application_that_ignores_the_signal_is_killed_with_its_children(make: Make, place: Cell) -> None:
    app = make(command=place.script("deaf", DEAF), stop_wait="300ms")
    app("start")
    done = app("stop")
    assert done.code == OK
    assert 0.3 <= done.seconds < 3
    assert not place.processes()


def test_a_polite_application_gets_the_configured_signal_and_its_time(make: Make, place: Cell) -> None:
    trace = place.directory / "polite"
    program = place.script("polite", f"trap 'sleep 0.3; echo saved > {trace}; exit' INT; while :; do sleep 0.02; done")
    app = make(command=program, stop_signal="SIGINT", kill_scope="process")
    app("start")
    assert app("stop").code == OK
    assert trace.read_text() == "saved\n"


def test_a_frozen_application_is_stopped_too(make: Make, place: Cell, number: int) -> None:
    app = make(command=f"sleep {number}")
    app("start")
    place.run("kill", "-STOP", str(place.named(f"sleep {number}")[0].pid))
    done = app("stop")
    assert done.code == OK
    assert done.seconds < 2


@pytest.mark.parametrize(("scope", "left"), [("process", 3), ("group", 2), ("session", 0)])
def test_the_scope_says_how_far_a_stop_reaches(make: Make, place: Cell, number: int, scope: str, left: int) -> None:
    # in its group, in a group of its own (a shell with job control makes one), in a session of its own
    job = "import os, sys; os.setpgid(0, 0); os.execvp('sleep', ['sleep', sys.argv[1]])"
    body = f'sleep {number} & /usr/bin/python3 -ISc "{job}" {number} & setsid sleep {number} & wait'
    app = make(command=place.script("family", body), kill_scope=scope)
    app("start")
    wait_until(lambda: len(place.named(f"sleep {number}")) == 3)
    assert app("stop").code == OK
    assert len(place.named(f"sleep {number}")) == left
    assert app("monitor").code == NOT_RUNNING


def test_a_stop_that_was_killed_is_finished_by_the_next(make: Make, place: Cell) -> None:
    app = make(command=place.script("deaf2", DEAF), stop_wait="5s")
    app("start")
    stop = app.begin("stop")
    wait_until(lambda: "members=" in app.record().read_text() and "members=\n" not in app.record().read_text())
    kill_group(stop)
    app.parameters["stop_wait"] = "100ms"
    assert app("stop").code == OK
    assert not place.processes()


def test_orphans_are_remembered_when_their_parents_died_in_an_earlier_stop(
    make: Make, place: Cell, number: int
) -> None:
    # the child has no mark, a session of its own and soon no parent: only the record of the first stop knows it
    child = place.script("child", DEAF)
    app = make(command=f"sh -c 'env -i setsid {child} & sleep {number}'", stop_wait="5s")
    app("start")
    wait_until(lambda: place.named(child))
    stop = app.begin("stop")
    wait_until(lambda: not place.named(f"sleep {number}"))
    kill_group(stop)
    assert place.named(child)[0].parent == 1
    app.parameters["stop_wait"] = "100ms"
    assert app("stop").code == OK
    assert not place.processes()


def test_a_stop_ends_by_itself_before_the_manager_loses_patience(make: Make, place: Cell) -> None:
    app = make(
        command=place.script("deaf3", DEAF),
        stop_script=place.script("stop3", "sleep 100"),
        stop_wait="100s",
        kill_wait="9s",
    )
    app("start")
    done = app("stop", timeout_s=3)
    assert done.code == OK
    assert done.seconds < 3 * 0.8 + 0.3
    assert not place.processes()


@pytest.fixture
def frozen_disk(place: Cell, number: int) -> Iterator[str]:
    """A directory on which writers wait in state D, deaf to SIGKILL, until the test is over."""
    image, directory = place.directory / f"disk{number}", place.directory / f"frozen{number}"
    directory.mkdir()
    place.run("truncate", "-s", "8M", str(image))
    place.run("mkfs.ext4", "-q", str(image))
    place.run("mount", "-o", "loop", str(image), str(directory))
    try:
        place.run("fsfreeze", "-f", str(directory))
        try:
            yield str(directory)
        finally:
            place.run("fsfreeze", "-u", str(directory))
            wait_until(lambda: not place.named(f"frozen{number}"))
    finally:
        place.run("umount", str(directory))


def test_a_stop_script_that_even_sigkill_does_not_end_keeps_no_application_alive(
    make: Make, place: Cell, number: int, frozen_disk: str
) -> None:
    hung = place.script(f"hung{number}", f"exec touch {frozen_disk}/x")
    app = make(command=f"sleep {number}", stop_script=hung)
    app("start")
    done = app("stop", timeout_s=6)
    assert (done.code, done.reason) == (OK, "")
    assert done.seconds < 6 * 0.8 + 0.3
    assert not place.named(f"sleep {number}")
