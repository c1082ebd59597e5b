"""For all tests: none is judged by its time (speed belongs to `make bench`), and the longest files begin first."""

from __future__ import annotations

import hypothesis
import pytest

hypothesis.settings.register_profile("mirrorha", deadline=None)
hypothesis.settings.load_profile("mirrorha")

LONGEST_FIRST = (
    "simulation/test_random_runs",
    "replication/test_mirror_operator",
    "acceptance/mirror/test_reader",
    "acceptance/mirror/test_power_cuts",
    "simulation/test_planted_bugs",
    "acceptance/",
    "replication/test_mirror",
    "vagrant/test_lab",
)
"""Files are shared among workers one by one: a long one that begins last leaves the other cores idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((rank for rank, part in enumerate(LONGEST_FIRST) if part in path), len(LONGEST_FIRST))

    items.sort(key=rank)
