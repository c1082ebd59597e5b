"""mirroradm as it is typed: a program of its own, against a daemon that does what it is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from replication.control import claim, control_path, daemon_pid, running
from tests.replication.commands.host import DAEMON, PROJECT, Host
from tests.replication.statuses import alone, status, syncing

NEVER = "never"
OLD_DATA = {"subject": "mirror r0", "fact": "its data are old", "remedy": "mirroradm connect r0", "code": 17}


# up and down


def test_up_starts_a_daemon_and_again_changes_nothing(host: Host) -> None:
    host.up()
    pid = daemon_pid("r0", host.runtime)
    assert pid is not None
    assert os.getsid(pid) == pid
    host.up()
    assert daemon_pid("r0", host.runtime) == pid


def test_a_daemon_that_dies_at_once_is_quoted(host: Host) -> None:
    host.play(last_words="disk /dev/vg/r0: no such file")
    done = host.run("up", "r0")
    assert done.returncode == 20
    assert "mirror r0: its mirrord ended with exit code 3: disk /dev/vg/r0: no such file; see " in done.stderr
    assert done.stdout == ""


def test_a_resource_that_nobody_defined_is_not_started(host: Host) -> None:
    done = host.run("up", "r1")
    assert done.returncode == 1
    assert 'no file for resource "r1", but for r0' in done.stderr


def test_a_configuration_that_cannot_be_is_refused_before_anything_starts(host: Host) -> None:
    (host.configuration / "r0.res").write_text("resource r0 { net { timeoot 3; } }")
    done = host.run("up", "r0")
    assert done.returncode == 10
    assert "r0.res line 1" in done.stderr
    assert not host.logs.exists()


def test_up_dry_prints_what_would_be_run(host: Host) -> None:
    done = host.run("up", "--dry-run", "all")
    assert done.returncode == 0
    assert done.stdout.startswith(f"run {sys.executable} {DAEMON} ")
    assert f" r0 -c {host.configuration} --runtime-directory {host.runtime} >> {host.logs}/mirror-r0.log" in done.stdout
    assert running(host.runtime) == []


def test_a_program_that_is_not_there_is_named(host: Host) -> None:
    done = host.run("--mirrord", "/nowhere/mirrord", "up", "r0")
    assert done.returncode == 20
    assert "cannot be started: /nowhere/mirrord: No such file or directory" in done.stderr


def test_down_ends_the_daemon_and_again_changes_nothing(host: Host) -> None:
    host.up()
    for _ in range(2):
        done = host.run("down", "r0")
        assert (done.returncode, done.stdout) == (0, "")
        assert daemon_pid("r0", host.runtime) is None
    assert host.questions() == [["down", {"force": False}]]


def test_down_is_refused_while_the_device_is_in_use(host: Host) -> None:
    refusal = {"subject": "mirror r0", "fact": "its device is mounted", "remedy": "umount it", "code": 11}
    host.play(answers={"down": refusal})
    host.up()
    done = host.run("down", "r0")
    assert done.returncode == 11
    assert done.stderr == "mirroradm: mirror r0: its device is mounted; umount it\n"
    assert daemon_pid("r0", host.runtime) is not None


def test_down_by_force_works_against_a_daemon_that_does_not_listen(host: Host) -> None:
    host.play(answers={"down": NEVER}, child=["sleep", "4711"])
    host.up()
    pid = daemon_pid("r0", host.runtime)
    assert host.run("down", "-t", "0.5", "r0").returncode == 20
    done = host.run("down", "--force", "-t", "2", "r0")
    assert done.returncode == 0
    assert f"killed its mirrord (process {pid})" in done.stderr
    assert "killed sleep (process" in done.stderr
    assert not control_path("r0", host.runtime).exists()
    host.up()


def test_down_by_force_works_against_a_stopped_daemon(host: Host) -> None:
    host.up()
    pid = daemon_pid("r0", host.runtime)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    begin = time.monotonic()
    done = host.run("down", "--force", "-t", "1", "r0")
    assert done.returncode == 0
    assert time.monotonic() - begin < 10
    assert daemon_pid("r0", host.runtime) is None


def test_down_by_force_works_against_a_daemon_without_a_socket(host: Host) -> None:
    host.up()
    control_path("r0", host.runtime).unlink()
    done = host.run("down", "--force", "-t", "1", "r0")
    assert done.returncode == 0
    assert "killed its mirrord" in done.stderr


def test_down_by_force_asks_nicely_first(host: Host) -> None:
    host.up()
    done = host.run("down", "--force", "all")
    assert (done.returncode, done.stderr) == (0, "")
    assert host.questions() == [["down", {"force": True}]]


def test_down_cleans_up_behind_a_daemon_that_was_killed(host: Host) -> None:
    host.up()
    pid = daemon_pid("r0", host.runtime)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    done = host.run("down", "-t", "10", "r0")
    assert done.returncode == 0
    assert not control_path("r0", host.runtime).exists()


def test_another_process_with_the_number_of_a_dead_daemon_is_left_alone(host: Host) -> None:
    bystander = subprocess.Popen(["sleep", "4711"])
    os.close(claim("r0", host.runtime))  # claimed and given up: as a daemon that died
    (host.runtime / "r0" / "pid").write_text(f"{bystander.pid}\n")
    assert host.run("down", "--force", "r0").returncode == 0
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


# verbs that ask the daemon


@pytest.mark.parametrize(
    ("words", "questions"),
    [
        ("primary r0", [["primary", {"force": False}]]),
        ("primary --force r0/0", [["primary", {"force": True}]]),
        ("primary --accept-loss=beta r0", [["permit", {"accept_loss": "beta"}], ["primary", {"force": False}]]),
        ("permit r0 --accept-loss=beta", [["permit", {"accept_loss": "beta"}]]),
        ("secondary all", [["secondary", {"force": False}]]),
        ("connect --discard-my-data r0", [["connect", {"discard_my_data": True}]]),
        ("disconnect r0", [["disconnect", {}]]),
        ("invalidate r0", [["invalidate", {}]]),
        ("invalidate-remote r0", [["invalidate-remote", {}]]),
        ("outdate r0", [["outdate", {}]]),
        ("new-current-uuid --clear-bitmap r0", [["new-current-uuid", {"clear_bitmap": True}]]),
        ("detach r0", [["detach", {}]]),
        ("attach r0", [["attach", {}]]),
    ],
)
def test_each_verb_asks_the_daemon_for_one_thing(host: Host, words: str, questions: list[Any]) -> None:
    host.up()
    done = host.run(*words.split())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert host.questions() == questions


def test_dry_run_prints_the_plan_and_asks_nothing(host: Host) -> None:
    host.up()
    done = host.run("primary", "-d", "--accept-loss", "beta", "r0")
    assert done.stdout == "ask mirrord r0: permit accept-loss=beta\nask mirrord r0: primary\n"
    assert host.questions() == []


def test_a_permit_that_is_refused_promotes_nobody(host: Host) -> None:
    host.play(answers={"permit": OLD_DATA})
    host.up()
    assert host.run("primary", "--accept-loss=beta", "r0").returncode == 17
    assert [verb for verb, _ in host.questions()] == ["permit"]


def test_a_refusal_is_reason_remedy_and_exit_code(host: Host) -> None:
    host.play(answers={"primary": OLD_DATA})
    host.up()
    done = host.run("primary", "r0")
    assert done.returncode == 17
    assert done.stdout == ""
    assert done.stderr == "mirroradm: mirror r0: its data are old; mirroradm connect r0\n"


def test_every_verb_has_a_deadline(host: Host) -> None:
    host.play(answers={"outdate": NEVER})
    host.up()
    begin = time.monotonic()
    done = host.run("outdate", "--timeout", "0.3", "r0")
    assert done.returncode == 20
    assert "outdate not done within 0.3 s, and withdrawn" in done.stderr
    assert time.monotonic() - begin < 10


def test_of_several_resources_each_is_tried(host: Host) -> None:
    host.define("r1", 1)
    host.up("r1")
    done = host.run("-o", "json", "connect", "all")
    assert done.returncode == 10
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["r0"]["error"]["fact"] == "its mirrord does not run"
    assert "error" not in rows["r1"]
    assert rows["r1"]["steps"] == ["ask mirrord r1: connect"]


def test_a_daemon_that_does_not_run_is_told_from_a_resource_that_is_not_defined(host: Host) -> None:
    done = host.run("primary", "r0")
    assert (done.returncode, done.stderr) == (10, "mirroradm: mirror r0: its mirrord does not run; mirroradm up r0\n")
    done = host.run("primary", "r9")
    assert done.returncode == 1
    assert 'no file for resource "r9"' in done.stderr


def test_verbs_go_on_working_when_the_configuration_is_broken(host: Host) -> None:
    host.up()
    (host.configuration / "r0.res").write_text("resource {")
    assert host.run("role", "r0").stdout == "Secondary\n"
    assert host.run("status").stdout.startswith("r0 role:Secondary\n")
    assert host.run("secondary", "r0").returncode == 0
    assert host.run("down", "all").returncode == 0
    assert daemon_pid("r0", host.runtime) is None


# verbs that look


def test_status_for_people_and_for_programs(host: Host) -> None:
    host.play(status=syncing(42.1))
    host.up()
    assert host.run("status", "r0").stdout == (
        "r0 role:Secondary\n"
        "  disk:Inconsistent\n"
        "  beta role:Primary\n"
        "    replication:SyncTarget peer-disk:UpToDate done:42.10 rate:53.1MiB/s eta:0:01:12\n"
    )
    for words in (["status", "--json"], ["-o", "json", "status", "all"], ["status", "r0", "-o", "json"]):
        assert json.loads(host.run(*words).stdout) == [syncing(42.1)]
    assert "\033[1;31mInconsistent" in host.run("status", "--color=always").stdout
    assert "volume:0 minor:0" in host.run("status", "--verbose").stdout
    assert "size:102400" in host.run("status", "--statistics").stdout


def test_where_nothing_runs_status_says_so(host: Host) -> None:
    done = host.run("status")
    assert (done.returncode, done.stdout) == (0, "# No mirror runs here.\n")
    done = host.run("status", "r0", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (10, [])


def test_role_cstate_and_dstate_are_single_words(host: Host) -> None:
    host.up()
    assert host.run("role", "r0").stdout == "Secondary\n"
    assert host.run("cstate", "r0").stdout == "Connected\n"
    assert host.run("dstate", "r0/0").stdout == "UpToDate/UpToDate\n"
    assert json.loads(host.run("dstate", "all", "-o", "json").stdout) == [
        {"name": "r0", "disk-states": ["UpToDate/UpToDate"]}
    ]


def test_events2_now_prints_what_exists_and_ends(host: Host) -> None:
    host.up()
    lines = host.run("events2", "--now").stdout.splitlines()
    assert lines[0].startswith("exists resource name:r0 role:Secondary ")
    assert lines[-1] == "exists -"
    assert len(lines) == 6


def test_events2_follows_a_daemon_through_its_life(host: Host) -> None:
    host.play(then={"connect": [alone(), status(role="Primary", peer_role="Secondary")]})
    with subprocess.Popen(
        host.command("events2", "--timestamps", "r0"), cwd=PROJECT, stdout=subprocess.PIPE, text=True
    ) as events:
        assert events.stdout is not None
        assert events.stdout.readline().endswith(" exists -\n")
        host.up()
        assert " create resource name:r0 role:Secondary" in events.stdout.readline()
        assert host.run("connect", "r0").returncode == 0
        until(events, "change connection name:r0 peer-node-id:1 conn-name:beta connection:Connecting role:Unknown")
        until(events, "change resource name:r0 role:Primary may_promote:no")
        host.run("down", "r0")
        until(events, "destroy resource name:r0")
        events.send_signal(signal.SIGINT)
        assert events.wait(10) == 130


def until(events: subprocess.Popen[str], part: str) -> None:
    assert events.stdout is not None
    seen = []
    for line in events.stdout:
        seen.append(line)
        if part in line:
            return
    pytest.fail(f"never said: {part}\n{''.join(seen)}")


def test_events2_as_json_lines(host: Host) -> None:
    host.up()
    rows = [json.loads(line) for line in host.run("events2", "--now", "-o", "json").stdout.splitlines()]
    assert rows[0]["action"] == "exists"
    assert rows[0]["role"] == "Secondary"
    assert rows[-1] == {"action": "exists", "object": "-"}


def test_wait_sync_tells_of_progress_and_ends_when_the_sides_are_equal(host: Host) -> None:
    host.play(status=syncing(5.0), then={"connect": [syncing(11.0), syncing(57.0), status()]})
    host.up()
    with subprocess.Popen(
        host.command("wait-sync", "-t", "30", "r0"), cwd=PROJECT, stderr=subprocess.PIPE, text=True
    ) as waiting:
        assert waiting.stderr is not None
        assert waiting.stderr.readline().startswith("r0 done:5.00 rate:53.1MiB/s")
        host.run("connect", "r0")
        assert waiting.wait(10) == 0
        assert [line.split()[1] for line in waiting.stderr] == ["done:11.00", "done:57.00"]


def test_waiting_ends_with_five_when_the_time_is_over(host: Host) -> None:
    host.play(status=alone())
    host.up()
    done = host.run("wait-sync", "-t", "0.3", "r0")
    assert done.returncode == 5
    assert "not so within 0.3 s" in done.stderr


def test_nobody_waits_for_a_connection_that_is_not_sought(host: Host) -> None:
    host.play(status=alone(connection_state="StandAlone", reason="split brain", remedy="give way"))
    host.up()
    done = host.run("wait-connect", "r0")
    assert done.returncode == 11
    assert done.stderr == "mirroradm: mirror r0: StandAlone: split brain; give way\n"


def test_nobody_waits_for_a_daemon_that_does_not_run(host: Host) -> None:
    assert host.run("wait-connect", "r0").returncode == 10
