"""VirtualIP beside the shell agent it stands in for, on the same machine at the same time: relative bars only."""

from __future__ import annotations

import pytest

from tests.agents import compare
from tests.agents.namespaces import Network

pytestmark = pytest.mark.namespaces


def best(result: compare.Result, name: str, figure: str) -> float:
    """The undisturbed run: other work on the machine only ever adds time."""
    return min(one[figure] for one in result[name])


def test_a_monitor_costs_at_most_half_of_the_shell_agents(net: Network) -> None:
    result = compare.monitors(net.alpha, 9)
    for figure in ("wall_ms", "cpu_ms"):
        assert best(result, "ours", figure) <= 0.5 * best(result, "theirs", figure), figure


@pytest.mark.parametrize("conflict_check", [False, True])
def test_a_start_announces_no_later_than_the_shell_agent(net: Network, conflict_check: bool) -> None:
    result = compare.starts(net.alpha, 3, conflict_check=conflict_check)
    assert best(result, "ours", "announced_ms") <= best(result, "theirs", "announced_ms")
