"""Verbs in the wrong order, on the wrong thing, at the wrong moment: a laboratory says so, and goes on."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from vagrant.namespaces.lab import Lab, LabError

pytestmark = pytest.mark.lab
BETA = "192.168.56.12"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IO[str]]:
    with (tmp_path_factory.mktemp("lab") / "log").open("w+", encoding="utf-8") as log:
        yield log


@pytest.fixture(scope="module")
def lab(log: IO[str]) -> Iterator[Lab]:
    with Lab(log=log) as lab:
        yield lab


@pytest.fixture(autouse=True)
def _as_new(lab: Lab) -> Iterator[None]:
    yield
    lab.heal()
    for node in ("alpha", "beta"):
        if lab.status()["nodes"][node]["power"] == "paused":
            lab.resume(node)
        lab.power_on(node)
        lab.nic_up(node, "public")


def reaches(lab: Lab, source: str, address: str) -> bool:
    return lab.run(source, ["ping", "-n", "-q", "-c", "1", "-W", "1", address]).returncode == 0


def test_a_command_that_ran_while_its_node_was_paused_ends_when_it_is_done(lab: Lab) -> None:
    with lab.popen(
        "alpha", ["sh", "-c", "echo started; read end; exit 7"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as command:
        assert command.stdin is not None
        assert command.stdout is not None
        assert command.stdout.readline() == b"started\n"
        lab.pause("alpha")
        try:
            # whoever waits for it outside must not be stopped with it, for nobody would wake him
            deadline = time.monotonic() + 0.3
            while time.monotonic() < deadline:
                assert " (timeout) T " not in Path(f"/proc/{command.pid}/stat").read_text(encoding="utf-8")
                assert " (nsenter) T " not in Path(f"/proc/{command.pid}/stat").read_text(encoding="utf-8")
                time.sleep(0.02)
            lab.resume("alpha")
            command.stdin.write(b"\n")
            command.stdin.close()
            assert command.wait(5) == 7
        finally:
            command.kill()


def test_a_program_that_was_stopped_before_the_pause_is_still_stopped_after_it(lab: Lab) -> None:
    with lab.popen("alpha", ["sh", "-c", "echo $$; exec sleep 60"], stdout=subprocess.PIPE, text=True) as hung:
        assert hung.stdout is not None
        pid = hung.stdout.readline().strip()
        lab.run("alpha", ["kill", "-STOP", pid])
        lab.pause("alpha")
        lab.resume("alpha")
        assert "T (stopped)" in lab.run("alpha", ["cat", f"/proc/{pid}/status"]).stdout
        hung.kill()


def test_a_paused_node_can_be_switched_off_and_on_again(lab: Lab) -> None:
    lab.pause("alpha")
    lab.power_cut("alpha")
    lab.power_on("alpha")
    assert reaches(lab, "alpha", BETA)


def test_a_node_that_halts_by_itself_is_off_and_can_be_switched_on(lab: Lab) -> None:
    # by reboot(2): a small system has no command for it; in a PID namespace it ends that namespace's init
    lab.run("alpha", ["python3", "-c", "import ctypes; ctypes.CDLL(None).reboot(0x4321FEDC)"])
    deadline = time.monotonic() + 5
    while lab.power_status("alpha") == "on":
        assert time.monotonic() < deadline, "its init is gone, and the laboratory still calls it on"
        time.sleep(0.01)
    lab.power_on("alpha")
    assert reaches(lab, "alpha", BETA)


def test_a_node_that_deleted_its_nic_can_still_be_switched_off(lab: Lab) -> None:
    lab.run("alpha", ["ip", "link", "delete", "eth1"])
    lab.power_cut("alpha")
    assert lab.power_status("alpha") == "off"
    lab.power_on("alpha")
    assert reaches(lab, "alpha", BETA)


def test_a_pulled_cable_stays_pulled_when_the_node_is_switched_off_and_on(lab: Lab) -> None:
    lab.nic_down("alpha", "public")
    lab.power_cut("alpha")
    lab.power_on("alpha")
    assert "NO-CARRIER" in lab.run("alpha", ["ip", "link", "show", "eth1"]).stdout
    assert lab.status()["pulled"] == [["alpha", "public"]]
    lab.power_cut("alpha")
    lab.nic_up("alpha", "public")
    lab.power_on("alpha")
    assert reaches(lab, "alpha", BETA)


def test_a_power_cycle_changes_neither_cut_nor_delay(lab: Lab) -> None:
    lab.cut("data")
    lab.delay("heartbeat", 40)
    lab.power_cut("beta")
    lab.power_on("beta")
    assert not reaches(lab, "alpha", "192.168.58.12")
    ping = lab.run("alpha", ["ping", "-n", "-q", "-c", "3", "-i", "0.1", "192.168.57.12"]).stdout
    assert float(ping.rsplit("/", 3)[-3]) >= 79
    lab.heal()
    assert reaches(lab, "alpha", "192.168.58.12")


def test_a_power_cut_says_nothing_on_the_terminal(lab: Lab, log: IO[str]) -> None:
    lab.power_cut("alpha")
    lab.power_on("alpha")
    log.seek(0)
    assert log.read() == ""


def test_what_cannot_be_is_refused_with_the_remedy(lab: Lab) -> None:
    for ask, answer in (
        (lambda: lab.run("gamma", ["true"]), r"^node gamma: is not in .*; choose one of alpha, beta, client$"),
        (lambda: lab.power_cut("gamma"), r"^node gamma: is not in .*; choose one of alpha, beta, client$"),
        (lambda: lab.heal("pubic"), r"^network pubic: is not in .*; choose one of public, heartbeat, data$"),
        (lambda: lab.loss("public", 101), r"^network public: 101 % .*; give 0 to 100$"),
        (lambda: lab.delay("public", -1), r"^network public: a delay of -1 ms .*; give 0 to 120000$"),
        (lambda: lab.delay("public", 120_001), r"^network public: a delay of 120001 ms .*; give 0 to 120000$"),
        (lambda: lab.cut("data", source="client"), r"^node client: is not on network data; choose one of public$"),
        (lambda: lab.cut("data", "alpha", "alpha"), r"^node alpha: sends nothing to itself .*; give two nodes$"),
        (lambda: lab.nic_down("alpha", "eth9"), r"^node alpha: has no NIC eth9; choose one of eth1 \(public\), "),
        (lambda: lab.serial("loud"), r'^serial line: "loud" .*; give cut, heal, or noise 0 to 100$'),
        (lambda: lab.serial("noise 101"), r"^serial line: "),
        (lambda: lab.disk_keep("some"), r"^disk-keep: .*; choose none, all or random$"),
        (lambda: lab.disk("client", "error"), r"^node client: has no disk; "),
        (lambda: lab.resume("alpha"), r"^node alpha: is on, not paused; "),
    ):
        with pytest.raises(LabError, match=answer):
            ask()
    lab.pause("alpha")
    with pytest.raises(LabError, match=r"^node alpha: is paused; resume alpha first$"):
        lab.pause("alpha")
    assert lab.status()["cuts"] == []
    assert lab.status()["delay_ms"] == {}


def test_no_loss_is_no_fault(lab: Lab) -> None:
    lab.loss("public", 10)
    lab.loss("public", 0)
    assert lab.status()["loss_percent"] == {}


def test_the_fence_agent_switches_a_paused_node_off(lab: Lab) -> None:
    """Pacemaker fences a host that hangs, not only one that is dead; the order may come from any node."""
    agent = Path(__file__).resolve().parents[2] / "vagrant" / "engines" / "debian" / "fence_lab"

    def fence(action: str) -> int:
        done = lab.run("beta", [str(agent)], input=f"action={action}\nnodename=alpha\nplug=alpha\n")
        assert done.stderr == ""
        return done.returncode

    lab.pause("alpha")
    assert fence("status") == 0
    assert fence("off") == 0
    assert fence("status") == 2
    assert fence("on") == 0
    assert reaches(lab, "alpha", BETA)
