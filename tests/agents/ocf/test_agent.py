"""From action name and environment to exit code and reason."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agents.ocf.agent import Agent, action
from agents.ocf.exit_code import (
    ERR_ARGS,
    ERR_CONFIGURED,
    ERR_GENERIC,
    ERR_INSTALLED,
    ERR_UNIMPLEMENTED,
    NOT_RUNNING,
    SUCCESS,
    AgentError,
    OcfExit,
)
from agents.ocf.log import Log
from agents.ocf.parameter import Integer, Text

REPOSITORY = Path(__file__).parents[3]


class Lamp(Agent):
    """Keeps one lamp lit."""

    socket = Text("Wall socket", required=True)
    watts = Integer("Power", default=40)
    answer: AgentError | OcfExit = SUCCESS

    @action(timeout_s=20)
    def start(self) -> OcfExit:
        return self._answer()

    @action(timeout_s=20)
    def stop(self) -> OcfExit:
        return self._answer()

    @action(timeout_s=20, interval_s=10)
    @action(timeout_s=20, interval_s=60, depth=10)
    def monitor(self) -> OcfExit:
        return self._answer()

    @action(timeout_s=20)
    def notify(self) -> OcfExit:
        return self._answer()

    def _answer(self) -> OcfExit:
        if isinstance(self.answer, AgentError):
            raise self.answer
        return self.answer


def lamp(answer: AgentError | OcfExit = SUCCESS, **environment: str) -> Lamp:
    agent = Lamp({"OCF_RESKEY_socket": "east", "OCF_RESKEY_CRM_meta_interval": "10000", **environment})
    agent.answer = answer
    return agent


def test_a_stop_that_finds_nothing_says_success_because_seven_would_fence_the_node() -> None:
    assert lamp(NOT_RUNNING).perform("stop") == (SUCCESS, "")


@pytest.mark.parametrize("code", [ERR_INSTALLED, ERR_CONFIGURED, ERR_ARGS])
def test_a_failing_stop_is_an_ordinary_failure_whatever_the_cause(code: OcfExit) -> None:
    assert lamp(AgentError(code, "stuck")).perform("stop") == (ERR_GENERIC, "stuck")


def test_a_start_never_says_not_running() -> None:
    assert lamp(NOT_RUNNING).perform("start")[0] == ERR_GENERIC


@pytest.mark.parametrize("interval", ["0", ""])
@pytest.mark.parametrize("code", [ERR_ARGS, ERR_INSTALLED, ERR_CONFIGURED])
def test_a_probe_of_what_cannot_run_here_says_not_running(code: OcfExit, interval: str) -> None:
    agent = lamp(AgentError(code, "no such thing"), OCF_RESKEY_CRM_meta_interval=interval)
    assert agent.perform("monitor") == (NOT_RUNNING, "")
    assert agent.is_probe


def test_a_recurring_monitor_keeps_its_code() -> None:
    assert lamp(AgentError(ERR_INSTALLED, "no lamp")).perform("monitor") == (ERR_INSTALLED, "no lamp")


def test_a_missing_required_parameter_bans_start_everywhere_but_leaves_stop_and_probe_alone() -> None:
    broken: dict[str, Any] = {"OCF_RESKEY_socket": ""}
    assert lamp(**broken).perform("start") == (ERR_CONFIGURED, "parameter socket is missing")
    assert lamp(**broken).perform("validate-all") == (ERR_CONFIGURED, "parameter socket is missing")
    assert lamp(**broken).perform("monitor")[0] == ERR_CONFIGURED
    assert lamp(**broken).perform("stop") == (SUCCESS, "")
    assert lamp(OCF_RESKEY_CRM_meta_interval="0", **broken).perform("monitor") == (NOT_RUNNING, "")


def test_start_checks_all_parameters_and_stop_only_those_it_needs() -> None:
    assert lamp(OCF_RESKEY_watts="x").perform("start")[0] == ERR_CONFIGURED
    assert lamp(OCF_RESKEY_watts="x").perform("stop") == (SUCCESS, "")


def test_notify_never_fails() -> None:
    assert lamp(AgentError(ERR_GENERIC, "hm")).perform("notify")[0] == SUCCESS


@pytest.mark.parametrize("name", ["promote", "demote", "migrate_to", "reload-agent", "perform", "_answer", "check"])
def test_what_is_not_declared_is_not_an_action(name: str) -> None:
    assert lamp().perform(name)[0] == ERR_UNIMPLEMENTED


def test_status_is_monitor() -> None:
    agent = lamp(NOT_RUNNING)
    assert agent.perform("status")[0] == NOT_RUNNING
    assert agent.action_name == "monitor"


def test_timeout_and_check_level_come_from_the_manager_with_its_defaults() -> None:
    agent = lamp(OCF_RESKEY_CRM_meta_timeout="5000", OCF_CHECK_LEVEL="10")
    assert (agent.timeout_s, agent.check_level) == (5.0, 10)
    assert (lamp().timeout_s, lamp().check_level) == (20.0, 0)
    assert lamp(OCF_RESKEY_CRM_meta_timeout="rubbish").timeout_s == 20.0


# --- the process -----------------------------------------------------------------------------------------------------

PROGRAM = '''
import sys, time
sys.path.insert(0, sys.argv.pop(1))
from agents.ocf.agent import Agent, action
from agents.ocf.exit_code import ERR_GENERIC, SUCCESS, AgentError
from agents.ocf.parameter import Text

class Lamp(Agent):
    """Keeps one lamp lit."""
    socket = Text("Wall socket", required=True)

    @action(timeout_s=20)
    def start(self):
        self.doing = "waiting for the bulb"
        if self.socket == "slow":
            while True:
                self.node.run(["sleep", "10"])
        if self.socket == "bug":
            return 1 // 0
        raise AgentError(ERR_GENERIC, self.socket)

Lamp.main()
'''


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-IS", "-c", PROGRAM, str(REPOSITORY), *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_an_action_ends_itself_at_four_fifths_of_its_time_out_and_says_what_it_was_doing() -> None:
    begin = time.monotonic()
    done = run("start", OCF_RESKEY_socket="slow", OCF_RESKEY_CRM_meta_timeout="1000")
    assert 0.8 <= time.monotonic() - begin < 3
    assert done.returncode == 1
    reason = "start gave up after 0.8 s (time-out 1 s) while waiting for the bulb"
    assert f"ocf-exit-reason:{reason}" in done.stderr


def test_the_reason_is_one_line_once_and_short_enough_for_the_manager() -> None:
    done = run("start", OCF_RESKEY_socket="é" * 300, OCF_EXIT_REASON_PREFIX="why:")
    lines = [line for line in done.stderr.splitlines() if line.startswith("why:")]
    assert len(lines) == 1
    assert len(lines[0].removeprefix("why:").encode()) <= 128
    assert done.returncode == 1


def test_a_bug_still_gives_an_exit_reason_and_a_traceback() -> None:
    done = run("start", OCF_RESKEY_socket="bug")
    assert done.returncode == 1
    assert "ocf-exit-reason:start met a bug of the agent, ZeroDivisionError" in done.stderr
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["start", "stop"], ["sing"], ["promote"], ["notify"]])
def test_an_unknown_action_is_answered_with_three_and_the_usage(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 3
    assert done.stderr.startswith("usage: Lamp { start |")
    assert done.stdout == ""


def test_help_goes_to_standard_output() -> None:
    done = run("-h")
    assert done.returncode == 0
    assert "Keeps one lamp lit." in done.stdout


def test_the_log_goes_to_the_clusters_log_file_with_the_usual_tag(tmp_path: Path) -> None:
    log = tmp_path / "cluster.log"
    run("start", OCF_RESKEY_socket="dead", HA_LOGFILE=str(log), OCF_RESOURCE_INSTANCE="p1")
    line = log.read_text()
    assert "Lamp(p1)[" in line
    assert line.endswith("]:    ERR: dead\n")


def test_no_text_keeps_the_log_from_being_written(tmp_path: Path) -> None:
    log = tmp_path / "cluster.log"
    run(
        "start", OCF_RESKEY_socket="dead", HA_LOGFILE=str(log), HA_LOGFACILITY="daemon", OCF_RESOURCE_INSTANCE="p\udce5"
    )
    Log("Lamp(p1)", {"HA_LOGFILE": str(log), "HA_LOGFACILITY": "daemon"}).warning("cut \udce5 off, \0 inside")
    assert log.read_text().endswith("WARN: cut ? off, ? inside\n")
