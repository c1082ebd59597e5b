"""The agent as a program: testers, unprivileged users, start-up cost, and its view of the machine's processes."""

from __future__ import annotations

import contextlib
import os
import subprocess

import psutil

from agents.supervision.processes import read_table
from tests.agents.application.codes import OK
from tests.agents.cell import AGENT, Cell, Make, wait_until


def test_nobody_can_read_the_meta_data(place: Cell) -> None:
    shown = place.run("setpriv", "--reuid=nobody", "--clear-groups", "env", "-i", AGENT, "meta-data")
    checked = subprocess.run(
        ["xmllint", "--noout", "--valid", "-"], input=shown, text=True, cwd="/usr/share/resource-agents", check=False
    )
    assert checked.returncode == 0
    assert '<parameter name="command">' in shown


def test_ocf_tester_is_content(place: Cell, number: int) -> None:
    options = {"command": f"sleep {number}", "process_name": "sleep", "monitor_script": "true", "stop_script": "true"}
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    done = subprocess.run(
        place.enter("ocf-tester", "-n", f"tested{number}", *words, AGENT),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed all tests" in done.stdout


def test_a_monitor_of_a_command_imports_nothing_heavy(make: Make, place: Cell, number: int) -> None:
    app = make(command=f"sleep {number}")
    app("start")
    words = app.command("monitor", timeout_s=10)
    library = "/usr/lib/ocf/lib/mirrorha"
    program = (
        f"import sys; sys.path.insert(0, '{library}'); from agents.application import Application; import posix; "
        "agent = Application({k.decode(): v.decode() for k, v in posix.environ.items()}); "
        "print(*agent.perform('monitor')); print(*sorted(sys.modules))"
    )
    shown = subprocess.run(
        [*words[:-2], "/usr/bin/python3", "-ISc", program], capture_output=True, text=True, timeout=10, check=True
    ).stdout.splitlines()
    assert shown[0].startswith("SUCCESS")
    heavy = {"os", "re", "enum", "select", "subprocess", "typing", "shlex", "pwd", "collections", "psutil", "signal"}
    unneeded = {f"agents.supervision.{name}" for name in ("processes", "belonging", "launch", "lock", "output")}
    assert not set(shown[1].split()) & (heavy | unneeded)


def test_a_process_whose_first_thread_has_ended_still_runs(make: Make, place: Cell) -> None:
    body = "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); "
    app = make(command=f"/usr/bin/python3 -c '{body}ctypes.CDLL(None).pthread_exit(None)'")
    assert app("start").code == OK
    leader = int(app.record().read_text().partition("leader=")[2].split()[0])
    wait_until(lambda: place.run("ps", "-o", "state=", "-p", str(leader)).strip() == "Z")
    assert app("monitor").code == OK
    assert app("stop").code == OK
    assert "State" not in place.run("sh", "-c", f"cat /proc/{leader}/status 2>/dev/null || :")


def test_our_view_of_processes_is_that_of_psutil() -> None:
    child = subprocess.Popen(["sleep", "60"], env={"MIRRORHA_APPLICATION": "db/0123"})
    try:
        theirs = psutil.Process(child.pid)
        wait_until(lambda: theirs.name() == "sleep")
        ours = read_table()[child.pid]
        assert (ours.parent, ours.name, ours.arguments) == (os.getpid(), "sleep", ("sleep", "60"))
        assert (ours.real_user, ours.user) == theirs.uids()[:2]
        assert ours.mark == theirs.environ()["MIRRORHA_APPLICATION"]
        started = psutil.boot_time() + ours.start_ticks / os.sysconf("SC_CLK_TCK")
        assert abs(started - theirs.create_time()) < 1
    finally:
        child.kill()
        child.wait()
    # only processes that were there before and after: other tests come and go meanwhile
    before, table, after = psutil_pids(), read_table(), psutil_pids()
    assert before & after <= set(table)


def psutil_pids() -> set[int]:
    """Living processes that have a program: kernel threads and zombies are nobody's application."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE and 2 not in (process.pid, process.ppid()):
                found.add(process.pid)
    return found
