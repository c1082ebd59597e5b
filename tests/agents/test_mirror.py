"""The agent Mirror on two real mirrords, each with directories and a host name of its own, in one closed place."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents.cell import AGENTS, Cell, Subject, cell, wait_until
from tests.replication.pair import PROJECT, Pair, Side

PROGRAMS = {"nbdfuse": "libnbd-bin", "ocf-tester": "resource-agents", "xmllint": "libxml2-utils"}
MANAGER = """
echo "$OCF_RESOURCE_INSTANCE $*" >> {log}
test ! -e {log}.refuse
"""


class Host:
    """One side with its agent; `tell` is the word of the manager."""

    def __init__(self, place: Cell, side: Side) -> None:
        self.place, self.side = place, side
        words = side.command()  # mirroradm as typed on this host
        options = " ".join(words[words.index(str(side.configuration)) + 1 :])
        command = f"cd {PROJECT} && exec unshare --uts sh -c 'hostname {side.name} && exec \"$@\"' sh {words[6]}"
        mirroradm = place.script(
            f"mirroradm-{side.mirror}-{side.name}", f'{command} -m replication.commands.mirroradm {options} "$@"'
        )
        parameters = {"resource": side.mirror, "config": str(side.configuration), "mirroradm": mirroradm}
        self.agent = Subject(place, f"{side.mirror}-{side.name}", parameters, timeout_s=15, agent="Mirror")
        self.agent.surroundings = {
            "OCF_RESKEY_crm_feature_set": "3.16.1",
            "OCF_RESKEY_CRM_meta_on_node": side.name,
        }

    def does(self, *actions: str) -> None:
        for action in actions:
            ran = self.agent(action)
            assert ran.code == 0, f"{self.side.name}: {action}: {ran.code}: {ran.errors}\n{self.side.log()}"

    def notified(self, kind: str, operation: str, promoted: str = "") -> None:
        about = {"type": kind, "operation": operation, "promote_uname": promoted}
        before = dict(self.agent.surroundings)
        self.agent.surroundings |= {f"OCF_RESKEY_CRM_meta_notify_{name}": value for name, value in about.items()}
        self.does("notify")
        self.agent.surroundings = before

    @property
    def score(self) -> str:
        """The last one the manager was told; "" when it was withdrawn, or none."""
        told = (self.place.directory / "manager.log").read_text().splitlines()
        mine = [line for line in told if line.startswith(f"{self.agent.instance} ")]
        return mine[-1].partition("--update=")[2] if mine else ""

    def kill(self, signal: str = "KILL") -> None:
        found = [p for p in self.place.named("replication.daemon") if f"{self.side.name}/" in p.command]
        assert found, f"no mirrord of {self.side.name} runs: {self.place.processes()}"
        for process in found:
            self.place.run("kill", f"-{signal}", str(process.pid))


@pytest.fixture(scope="module")
def place(installed: Path) -> Iterator[Cell]:
    missing = sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})
    assert not missing, f"apt-get install {' '.join(missing)}"
    with cell(installed) as made:
        programs = made.directory / "sbin"
        programs.mkdir()
        log = made.directory / "manager.log"
        log.touch()
        script = programs / "crm_attribute"
        script.write_text(f"#!/bin/sh{MANAGER.format(log=log)}")
        script.chmod(0o755)
        made.run("mount", "--bind", str(programs), "/usr/local/sbin")
        yield made


@pytest.fixture
def hosts(place: Cell) -> Iterator[tuple[Host, Host]]:
    """alpha and beta: fresh metadata, declared equal, down."""
    directory = place.directory / f"pair{len(list(place.directory.glob('pair*')))}"
    directory.mkdir()
    pair = Pair(directory, 64, "fuse", {"alpha": "buffered", "beta": "buffered"})
    alpha, beta = Host(place, pair.alpha), Host(place, pair.beta)
    pair.on_both("create-md")
    for host in (alpha, beta):
        host.does("start")
    pair.alpha.adm("new-current-uuid", "--clear-bitmap")
    pair.is_equal()
    try:
        yield alpha, beta
    finally:
        for host in (alpha, beta):
            host.agent("stop")
        place.end_all()


def test_the_life_of_a_mirror_in_the_hands_of_a_manager(hosts: tuple[Host, Host]) -> None:
    alpha, beta = hosts
    assert alpha.agent("monitor").code == 0
    assert alpha.score == "1000"
    alpha.does("promote")
    assert alpha.agent("monitor").code == 8
    assert alpha.score == "10000"
    assert alpha.side.device.is_block_device()
    beta.notified("post", "promote", promoted="alpha")
    assert beta.agent("monitor").code == 0
    assert beta.score == "-INFINITY"
    alpha.does("demote")
    assert not alpha.side.device.exists()
    assert alpha.score == "1000"
    beta.notified("post", "demote")
    assert beta.score == "1000"
    beta.does("promote")
    assert beta.agent("monitor").code == 8
    beta.does("demote", "stop", "stop")
    assert beta.score == ""
    assert beta.agent("monitor", is_probe=True).code == 7


def test_the_manager_is_told_a_score_when_it_differs_and_after_each_probe(hosts: tuple[Host, Host]) -> None:
    alpha, _ = hosts
    alpha.does("monitor")
    log = alpha.place.directory / "manager.log"
    before = log.read_text()
    alpha.does("monitor", "monitor")
    assert log.read_text() == before
    assert alpha.agent("monitor", is_probe=True).code == 0
    assert log.read_text() == f"{before}{alpha.agent.instance} --promotion --update=1000\n"


def test_a_start_without_its_peer_succeeds_and_forbids_the_promotion_before_it_ends(hosts: tuple[Host, Host]) -> None:
    alpha, beta = hosts
    alpha.does("stop")
    beta.does("stop")
    beta.agent.parameters["wait_connect"] = "1s"
    beta.does("start")
    assert beta.score == "-INFINITY"
    ran = beta.agent("promote")
    assert ran.code == 1
    assert "not promoted: peer alpha was not seen since beta started" in ran.reason
    alpha.does("start")
    assert beta.agent("monitor").code == 0
    assert beta.score == "1000"


def test_a_manager_that_does_not_hear_a_no_must_not_believe_in_a_start(hosts: tuple[Host, Host]) -> None:
    alpha, beta = hosts
    alpha.does("stop")
    beta.does("stop")
    beta.agent.parameters["wait_connect"] = "0s"
    refuse = beta.place.directory / "manager.log.refuse"
    refuse.touch()
    try:
        ran = beta.agent("start")
    finally:
        refuse.unlink()
    assert ran.code == 1
    assert "promotion score not set" in ran.reason


def test_never_two_promoted(hosts: tuple[Host, Host]) -> None:
    alpha, beta = hosts
    alpha.does("promote")
    ran = beta.agent("promote", timeout_s=4)
    assert ran.code == 1
    assert "not promoted: peer alpha is Primary" in ran.reason
    assert beta.agent("monitor").code == 0


def test_under_the_manual_policy_a_standby_of_a_dead_primary_waits_for_an_operators_word(
    hosts: tuple[Host, Host],
) -> None:
    alpha, beta = hosts
    alpha.does("promote")
    alpha.kill()
    wait_until(lambda: beta.side.states[1] == "Connecting", 10)
    assert beta.agent("monitor").code == 0
    assert beta.score == "-INFINITY"
    ran = beta.agent("promote")
    assert ran.code == 1
    assert "peer alpha was Primary when contact was lost" in ran.reason
    beta.side.adm("permit", "--accept-loss=beta")
    assert beta.agent("monitor").code == 0
    assert beta.score == "1000"
    beta.does("promote")
    assert beta.agent("monitor").code == 8


def test_a_mirrord_that_dies_promoted_has_failed_and_one_that_dies_as_standby_has_stopped(
    hosts: tuple[Host, Host],
) -> None:
    alpha, beta = hosts
    alpha.does("promote")
    beta.kill()
    assert beta.agent("monitor").code == 7
    beta.does("start")
    alpha.kill()
    ran = alpha.agent("monitor")
    assert ran.code == 9
    assert "died while it was promoted" in ran.reason
    assert alpha.agent("demote").code == 7
    alpha.does("stop", "start")
    assert alpha.agent("monitor").code == 0
    alpha.does("promote")


def test_a_device_in_use_is_neither_taken_away_by_demote_nor_by_stop(hosts: tuple[Host, Host]) -> None:
    alpha, _ = hosts
    alpha.does("promote")
    user = alpha.place.spawn("sh", "-c", f"exec sleep 1000 < {alpha.side.device}")
    try:
        wait_until(lambda: alpha.place.named("sleep 1000"))
        for action in ("demote", "stop"):
            ran = alpha.agent(action)
            assert ran.code == 1, action
            assert "sleep" in ran.reason, action
        assert alpha.agent("monitor").code == 8
    finally:
        user.kill()
        user.wait()
        for process in alpha.place.named("sleep 1000"):
            alpha.place.run("kill", str(process.pid))
    alpha.does("demote")


def test_a_promoted_mirrord_that_hangs_is_failed_in_time_and_ended_by_the_stop(hosts: tuple[Host, Host]) -> None:
    alpha, _ = hosts
    alpha.does("promote")
    alpha.kill("STOP")
    ran = alpha.agent("monitor", timeout_s=6)
    assert ran.code in (1, 9)
    assert ran.reason
    assert ran.seconds < 6
    alpha.does("stop")
    assert alpha.agent("monitor", is_probe=True).code == 7


def test_a_side_that_cannot_see_its_peer_is_old_from_the_peers_promotion_on(hosts: tuple[Host, Host]) -> None:
    alpha, beta = hosts
    alpha.side.adm("disconnect")
    beta.notified("pre", "promote", promoted="beta")
    assert beta.side.states[2] == "UpToDate"
    beta.notified("pre", "promote", promoted="alpha")
    assert beta.side.states[2] == "Outdated"
    assert beta.agent("monitor").code == 0
    assert beta.score == "-INFINITY"


def test_ocf_tester_passes_with_a_peer_in_sync_and_no_cluster(hosts: tuple[Host, Host]) -> None:
    alpha, _ = hosts
    words = [word for name, value in alpha.agent.parameters.items() for word in ("-o", f"{name}={value}")]
    command = alpha.place.enter("ocf-tester", "-n", "tested", *words, f"{AGENTS}/Mirror")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.rstrip().endswith(f"{AGENTS}/Mirror passed all tests"), done.stdout + done.stderr
    assert "* rc=" not in done.stdout
