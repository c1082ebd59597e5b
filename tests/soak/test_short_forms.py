"""The long runs in short: the same code, a few rounds. That of power-cuts is tests/acceptance/test_power.py."""

from __future__ import annotations

import subprocess

import pytest

from tests.soak.evidence import PROJECT
from tests.soak.killed_labs import LABORATORIES, kill_three


@pytest.mark.lab
def test_three_laboratories_killed_at_random_moments_leave_no_process() -> None:
    def elsewhere() -> list[str]:
        """Other tests have laboratories of their own meanwhile; here only the processes of the three are counted."""
        return []

    figures = kill_three(seed=2, look=elsewhere, longest_life_s=4.0)
    assert figures["processes"] > 5 * LABORATORIES, "they were killed before they lived"


def test_what_ci_runs_is_what_the_readme_tells_everybody_to_run() -> None:
    """The short form of fresh-clone is CI itself: it runs in a clone, and must not know more than the README says."""
    script = (PROJECT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert script[-1] == "exec make lint test"
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    for command in ("make demo", "make test", "make lint"):
        assert command in readme
        plan = subprocess.run(
            ["make", "--no-print-directory", "-n", *command.split()[1:]],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert plan.stdout.splitlines()[0] == "./setup.sh", f"{command} does not set itself up"
