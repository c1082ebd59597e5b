"""The laboratory itself: nodes are real, each fault does what its verb says, and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vagrant.leftovers import footprint
from vagrant.namespaces.lab import Lab, LabError

pytestmark = pytest.mark.lab
PROJECT = Path(__file__).resolve().parents[2]
ALPHA, BETA = "192.168.56.11", "192.168.56.12"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(log=sys.stderr) as lab:
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
        lab.disk(node, "ok")


def wait_for(what: str, fulfilled: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not fulfilled():
        assert time.monotonic() < deadline, f"after {timeout_s} s still not: {what}"
        time.sleep(0.01)


def pings(lab: Lab, source: str, address: str, count: int = 1) -> int:
    """How many of `count` pings came back."""
    argv = ["ping", "-n", "-q", "-c", str(count), "-i", "0.02", "-W", "1", address]
    output = lab.run(source, argv).stdout
    return int(output.split(" received")[0].split()[-1])


def test_a_node_has_its_own_name_addresses_processes_and_files(lab: Lab) -> None:
    host = lab.host("alpha")
    assert host.check_output("hostname") == "alpha"
    assert ALPHA in host.interface("eth1").addresses
    assert "192.168.57.11" in host.interface("eth2").addresses
    assert host.check_output("ip route show default").startswith("default via 192.168.56.1 dev eth1")
    assert "node_init.py" in host.process.get(pid=1).args
    host.check_output("touch /etc/mirrorha/only-here /usr/sbin/only-here")
    assert not lab.host("beta").file("/etc/mirrorha/only-here").exists
    assert not Path("/usr/sbin/only-here").exists()


def test_a_daemon_in_a_node_inherits_nothing_from_whoever_started_the_laboratory(lab: Lab) -> None:
    environment = lab.run("alpha", ["sh", "-c", "tr '\\0' '\\n' < /proc/$(pgrep -o -f attach_disk.py)/environ"]).stdout
    assert {line.partition("=")[0] for line in environment.split()} == {"PATH", "LANG", "HOME"}


def test_init_reaps_orphans(lab: Lab) -> None:
    lab.run("alpha", ["sh", "-c", "(sleep 0.01 & exec true)"])
    wait_for("no zombie", lambda: " Z " not in lab.run("alpha", ["ps", "-eo", "pid,stat"]).stdout.replace("\n", " "))


def test_nodes_hear_each_other_on_every_network_they_share(lab: Lab) -> None:
    for address in (BETA, "192.168.57.12", "192.168.58.12", "192.168.56.21", "192.168.56.1"):
        assert pings(lab, "alpha", address) == 1, address


def test_files_survive_a_power_cut_and_run_does_not(lab: Lab) -> None:
    lab.run("alpha", ["sh", "-c", "echo kept > /var/lib/mirrorha/state; echo gone > /run/state"])
    lab.power_cut("alpha")
    with pytest.raises(LabError, match="alpha is off"):
        lab.run("alpha", ["true"])
    lab.power_on("alpha")
    assert lab.host("alpha").file("/var/lib/mirrorha/state").content_string == "kept\n"
    assert not lab.host("alpha").file("/run/state").exists


def test_a_pulled_cable_takes_the_carrier_and_only_that_cable(lab: Lab) -> None:
    lab.nic_down("alpha", "eth1")
    wait_for("no carrier", lambda: "NO-CARRIER" in lab.run("alpha", ["ip", "link", "show", "eth1"]).stdout)
    assert pings(lab, "alpha", "192.168.57.12") == 1
    lab.nic_up("alpha", "eth1")
    wait_for("a ping", lambda: pings(lab, "alpha", BETA) == 1)


def test_a_cut_loses_frames_without_any_nic_noticing(lab: Lab) -> None:
    lab.cut("public")
    assert pings(lab, "alpha", BETA) == 0
    assert pings(lab, "alpha", "192.168.56.1") == 0
    assert "NO-CARRIER" not in lab.run("alpha", ["ip", "link", "show", "eth1"]).stdout
    assert pings(lab, "alpha", "192.168.58.12") == 1
    lab.heal("public")
    assert pings(lab, "alpha", BETA) == 1


def test_a_one_way_cut_lets_the_other_way_through(lab: Lab) -> None:
    lab.run("alpha", ["ping", "-c1", BETA])
    lab.cut("public", source="alpha", target="beta")
    with lab.popen(
        "beta", ["tcpdump", "-n", "-c", "1", "-i", "eth1", "icmp"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as heard:
        assert heard.stderr is not None
        while b"listening" not in heard.stderr.readline():
            pass
        assert pings(lab, "alpha", BETA) == 0
        assert heard.poll() is None, "a frame came through the cut direction"
        argv = ["ping", "-n", "-q", "-c", "1", "-W", "1", ALPHA]
        lab.run("beta", argv)
        output, _ = heard.communicate(timeout=5)
    assert b"192.168.56.12 > 192.168.56.11" in output
    assert pings(lab, "alpha", "192.168.56.21") == 1


def test_loss_takes_about_the_share_it_was_given(lab: Lab) -> None:
    lab.loss("data", 30)
    received = pings(lab, "alpha", "192.168.58.12", count=100)
    assert 20 <= received <= 80  # both ways through the hub: 0.7 * 0.7 = 49 expected


def test_delay_arrives_late_and_loses_nothing(lab: Lab) -> None:
    lab.delay("data", 20)
    output = lab.run("alpha", ["ping", "-n", "-q", "-c", "5", "-i", "0.1", "192.168.58.12"]).stdout
    average_ms = float(output.rsplit("/", 3)[-3])
    assert "5 received" in output
    assert 38 <= average_ms <= 60
    assert pings(lab, "alpha", BETA) == 1
    lab.cut("data", source="alpha", target="beta")
    assert pings(lab, "alpha", "192.168.58.12") == 0


def test_a_paused_node_is_silent_and_goes_on_where_it_was(lab: Lab) -> None:
    counter = ["sh", "-c", "i=0; while :; do i=$((i+1)); echo $i > /run/counter; sleep 0.01; done"]
    with lab.popen("alpha", counter) as process:
        path = Path(f"/proc/{lab.node_pid('alpha')}/root/run/counter")
        wait_for("the counter runs", path.exists)
        lab.pause("alpha")
        before = path.read_text(encoding="ascii")
        assert pings(lab, "client", ALPHA) == 0
        assert path.read_text(encoding="ascii") == before
        lab.resume("alpha")
        wait_for("the counter goes on", lambda: path.read_text(encoding="ascii") not in (before, ""))
        assert pings(lab, "client", ALPHA) == 1
        process.kill()


def test_a_power_cut_says_nothing_to_the_peer(lab: Lab) -> None:
    """A kernel that dies sends no FIN and no RST: the peer must find out by itself."""
    listen = f"{LISTEN}; print(flush=True); c=s.accept()[0]; c.sendall(b'x'); c.recv(9)"
    speak = (
        f"import socket,time; c=socket.create_connection(('{ALPHA}', 7777)); print(c.recv(1), flush=True); c.recv(9)"
    )
    server = lab.popen("alpha", ["python3", "-c", listen], stdout=subprocess.PIPE)
    assert server.stdout is not None
    server.stdout.readline()
    capture = ["tcpdump", "-n", "-l", "-i", "beta.eth1", "tcp port 7777 and tcp[tcpflags] & (tcp-fin|tcp-rst) != 0"]
    with (
        subprocess.Popen([*lab.enter_hub(), *capture], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as wire,
        lab.popen("beta", ["python3", "-c", speak], stdout=subprocess.PIPE) as peer,
    ):
        assert wire.stderr is not None
        assert peer.stdout is not None
        while b"listening" not in wire.stderr.readline():
            pass
        assert peer.stdout.readline() == b"b'x'\n"
        lab.power_cut("alpha")
        assert "ESTAB" in lab.run("beta", ["ss", "-tn", "dport", "=", "7777"]).stdout
        peer.kill()
        peer.wait()
        # the watch itself can see a FIN: the dying peer process sends one, into the void
        assert wire.stdout is not None
        first = wire.stdout.readline()
        assert b"192.168.56.12" in first.split(b">")[0], first
        wire.kill()
    server.wait()


LISTEN = "import socket; s=socket.create_server(('', 7777))"

FLUSH_THEN_NOT = """
import mmap, os, sys, time
device = os.open("/dev/vdb", os.O_RDWR | os.O_DIRECT)
page = mmap.mmap(-1, 4096)
def write(block, byte):
    page[:] = bytes([byte]) * 4096
    os.pwrite(device, page, block * 4096)
for block in range(64):
    write(block, 1)
os.fsync(device)
for block in range(64, 128):
    write(block, 2)
print("written", flush=True)
time.sleep(60)
"""
READ_BACK = """
import os
data = open("/dev/vdb", "rb").read(128 * 4096)
print(data[:64 * 4096].count(1), data[64 * 4096:].count(2))
"""


def test_flushed_data_are_there_after_a_power_cut_and_unflushed_only_sometimes(lab: Lab) -> None:
    def ready() -> bool:
        return lab.run("alpha", ["test", "-b", "/dev/vdb"]).returncode == 0

    kept = set()
    for keep in ("random", "none", "all"):
        lab.disk_keep(keep)
        wait_for("the disk is attached", ready)
        with lab.popen("alpha", ["python3", "-c", FLUSH_THEN_NOT], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"written\n"
            lab.power_cut("alpha")
        lab.power_on("alpha")
        wait_for("the disk is attached", ready)
        flushed, unflushed = map(int, lab.run("alpha", ["python3", "-c", READ_BACK]).stdout.split())
        assert flushed == 64 * 4096
        kept.add({0: "none", 64 * 4096: "all"}.get(unflushed, "some"))
        lab.run("alpha", ["sh", "-c", "dd if=/dev/zero of=/dev/vdb bs=4096 count=128 oflag=direct conv=fsync"])
    lab.disk_keep("random")
    assert kept == {"some", "none", "all"}


def test_a_disk_that_fails_answers_eio(lab: Lab) -> None:
    wait_for("the disk is attached", lambda: lab.run("beta", ["test", "-b", "/dev/vdb"]).returncode == 0)
    read = ["dd", "if=/dev/vdb", "of=/dev/null", "bs=4096", "count=1", "iflag=direct"]
    assert lab.run("beta", read).returncode == 0
    lab.disk("beta", "error")
    assert "Input/output error" in lab.run("beta", read).stderr
    lab.disk("beta", "ok")
    assert lab.run("beta", read).returncode == 0


def test_a_hung_disk_answers_when_it_is_well_again(lab: Lab) -> None:
    wait_for("the disk is attached", lambda: lab.run("beta", ["test", "-b", "/dev/vdb"]).returncode == 0)
    lab.disk("beta", "hang")
    read = lab.popen("beta", ["dd", "if=/dev/vdb", "of=/dev/null", "bs=4096", "count=1", "iflag=direct"])
    with pytest.raises(subprocess.TimeoutExpired):
        read.wait(0.5)
    lab.disk("beta", "ok")
    assert read.wait(5) == 0


def test_the_serial_line_joins_the_nodes_and_can_be_cut(lab: Lab) -> None:
    reader = ["timeout", "5", "sh", "-c", "stty raw -echo < /dev/ttyS1; echo listening; head -c 5 < /dev/ttyS1"]
    with lab.popen("beta", reader, stdout=subprocess.PIPE) as heard:
        assert heard.stdout is not None
        assert heard.stdout.readline() == b"listening\n"
        lab.run("alpha", ["sh", "-c", "printf hello > /dev/ttyS1"])
        assert heard.stdout.read() == b"hello"


def test_an_unknown_name_is_refused_with_the_choices(lab: Lab) -> None:
    with pytest.raises(LabError, match="gamma: is not in this laboratory; choose one of alpha, beta, client"):
        lab.power_cut("gamma")
    with pytest.raises(LabError, match="choose one of public, heartbeat, data"):
        lab.cut("pubic")


def test_three_laboratories_stand_side_by_side() -> None:
    with contextlib.ExitStack() as stack:
        labs = [stack.enter_context(Lab(log=sys.stderr)) for _ in range(3)]
        labs[1].cut("public")
        assert [pings(lab, "alpha", BETA) for lab in labs] == [1, 0, 1]


OWNER = """
import sys, time
from vagrant.namespaces.lab import Lab
lab = Lab(engine="none")
print("up", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("victim", ["owner", "supervisor"])
def test_a_killed_test_leaves_nothing_behind(victim: str) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], cwd=PROJECT, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        lab_pids = footprint(owner.pid)
        assert lab_pids, "the laboratory has no process: this test would prove nothing"
        if victim == "owner":
            owner.kill()
        else:
            os.kill(lab_pids[1], signal.SIGKILL)  # unshare, then the supervisor, then everything else
            wait_for("all processes gone", lambda: not any(Path(f"/proc/{pid}").exists() for pid in lab_pids[1:]))
            owner.kill()
    wait_for("all processes gone", lambda: not any(Path(f"/proc/{pid}").exists() for pid in lab_pids))
