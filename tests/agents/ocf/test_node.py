"""Programs run for an agent."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from agents.ocf.exit_code import ERR_GENERIC, ERR_INSTALLED, AgentError
from agents.ocf.node import Node


def test_output_of_both_streams_and_the_exit_code_come_back() -> None:
    done = Node({}).run(["sh", "-c", "echo one; echo two >&2; exit 3"])
    assert (done.code, done.output, done.last_line, done.timed_out) == (3, "one\ntwo\n", "two", False)


def test_a_program_that_hangs_is_killed_in_time() -> None:
    begin = time.monotonic()
    done = Node({}).run(["sleep", "60"], timeout_s=0.1)
    assert (done.code, done.timed_out) == (-9, True)
    assert time.monotonic() - begin < 5


def test_a_daemon_left_behind_with_our_output_does_not_hold_us_up() -> None:
    begin = time.monotonic()
    done = Node({"PATH": "/bin"}).run(["sh", "-c", "sleep 3 & echo started"])
    assert done.output == "started\n"
    assert time.monotonic() - begin < 2.5


def test_only_the_end_of_endless_output_is_kept() -> None:
    done = Node({"PATH": "/bin:/usr/bin"}).run(["sh", "-c", "yes | head -c 300000; echo; echo end"])
    assert len(done.output) == 64 * 1024
    assert done.last_line == "end"


def test_a_program_that_is_not_installed_is_named_with_the_remedy() -> None:
    with pytest.raises(AgentError) as caught:
        Node({}).run(["no-such-program"])
    assert caught.value.exit == ERR_INSTALLED
    assert caught.value.reason.startswith("program no-such-program is not installed on this node")


def test_the_inherited_path_is_not_trusted(tmp_path: Path) -> None:
    fake = tmp_path / "sh"
    fake.write_text("#!/bin/false\n")
    fake.chmod(0o755)
    assert Node({"PATH": str(tmp_path)}).find_program("sh") != str(fake)


def test_children_are_not_deaf_to_a_closed_pipe() -> None:
    done = Node({"PATH": "/bin:/usr/bin"}).run(["sh", "-c", "kill -PIPE $$; echo survived"])
    assert done.code == -13


def test_a_promotion_score_that_the_manager_refuses_is_an_error() -> None:
    """No cluster runs here, so crm_attribute fails (or is not installed)."""
    with pytest.raises(AgentError) as caught:
        Node({"OCF_RESOURCE_INSTANCE": "m0", "PATH": "/usr/sbin:/usr/bin"}).set_promotion_score(10)
    assert caught.value.exit in (ERR_GENERIC, ERR_INSTALLED)
