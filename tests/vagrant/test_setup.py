"""setup.sh on a machine that lacks a package. A node of the laboratory is that machine: it may be spoilt."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vagrant.namespaces.lab import Lab

pytestmark = pytest.mark.lab
PROJECT = Path(__file__).resolve().parents[2]
POLICY = "/usr/sbin/policy-rc.d"
PROOF = "/usr/bin/arping"
APT = """#!/bin/sh
echo "$@" >> /run/apt.log
case "$1" in
update) ;;
install) {install} ;;
esac
"""

INTERRUPT = """
import os, subprocess, sys, time
setup = subprocess.Popen(["/srv/checkout/setup.sh"], start_new_session=True)
while not os.path.exists("/run/installing"):
    time.sleep(0.01)
os.killpg(setup.pid, int(sys.argv[1]))  # apt-get gets it too, as by Ctrl-C
setup.wait(10)
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(log=sys.stderr) as lab:
        script = f"""set -e
            mkdir -p /srv/checkout/.venv
            cp {PROJECT}/setup.sh {PROJECT}/setup.cfg {PROJECT}/pyproject.toml /srv/checkout
            chmod 755 /srv /srv/checkout
            touch /srv/checkout/.venv/.installed
            rm -f {POLICY}"""
        subprocess.run([*lab.enter("client"), "sh", "-c", script], check=True)
        yield lab


def prepare(lab: Lab, install: str) -> None:
    """A package is missing, and apt-get does as `install` says."""
    script = (
        f"rm -f {PROOF} /run/apt.log; cat > /usr/local/sbin/apt-get; chmod 755 /usr/local/sbin/apt-get; "
        "rm -f /run/installing; touch /srv/checkout/.venv/.installed"
    )
    assert lab.run("client", ["sh", "-c", script], input=APT.format(install=install)).returncode == 0


def exists(lab: Lab, path: str) -> bool:
    return lab.run("client", ["test", "-e", path]).returncode == 0


def test_a_missing_package_is_installed_and_no_daemon_starts_meanwhile(lab: Lab) -> None:
    prepare(lab, f"sh {POLICY}; echo $? > /run/policy; touch {PROOF}")
    done = lab.run("client", ["/srv/checkout/setup.sh"])
    assert (done.returncode, done.stderr) == (0, "")
    assert "installing" in done.stdout
    assert "iputils-arping" in lab.run("client", ["cat", "/run/apt.log"]).stdout
    assert lab.run("client", ["cat", "/run/policy"]).stdout == "101\n"
    assert not exists(lab, POLICY)
    assert lab.run("client", ["/srv/checkout/setup.sh"]).stdout == "", "nothing is missing, and it still does something"


def test_a_failing_apt_is_reported_and_services_may_start_again(lab: Lab) -> None:
    prepare(lab, "echo 'E: no such mirror'; exit 100")
    done = lab.run("client", ["/srv/checkout/setup.sh"])
    assert done.returncode == 1
    assert "E: no such mirror\nsetup: apt-get failed; its whole output is in /tmp/" in done.stderr
    assert not exists(lab, POLICY)


def test_whoever_is_not_root_hears_what_to_install(lab: Lab) -> None:
    prepare(lab, "exit 0")
    done = lab.run("client", ["setpriv", "--reuid", "65534", "--clear-groups", "/srv/checkout/setup.sh"])
    assert done.returncode == 1
    assert done.stderr.endswith("only root can install them: apt-get install iputils-arping\n")
    assert not exists(lab, "/run/apt.log")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_setup_does_not_forbid_services_for_ever(lab: Lab, stop: signal.Signals) -> None:
    prepare(lab, "touch /run/installing; exec sleep 60")
    assert lab.run("client", ["python3", "-c", INTERRUPT, str(int(stop))]).returncode == 0
    deadline = time.monotonic() + 5
    while exists(lab, POLICY):
        assert time.monotonic() < deadline, f"{POLICY} outlives setup.sh: no package can start its service any more"
        time.sleep(0.02)


def test_a_policy_that_an_earlier_killed_setup_left_is_taken_away_and_a_foreign_one_is_not(lab: Lab) -> None:
    prepare(lab, f"cp -p {POLICY} /run/left; touch {PROOF}")
    assert lab.run("client", ["/srv/checkout/setup.sh"]).returncode == 0
    prepare(lab, f"touch {PROOF}")
    lab.run("client", ["cp", "-p", "/run/left", POLICY])
    assert lab.run("client", ["/srv/checkout/setup.sh"]).returncode == 0
    assert not exists(lab, POLICY)
    prepare(lab, f"touch {PROOF}")
    lab.run("client", ["sh", "-c", f"echo 'exit 0' > {POLICY}"])
    assert lab.run("client", ["/srv/checkout/setup.sh"]).returncode == 0
    assert lab.run("client", ["cat", POLICY]).stdout == "exit 0\n"
    lab.run("client", ["rm", POLICY])
