"""A closed place for each module, empty again after each test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents.cell import Cell, Make, Subject, cell

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def closed_place(installed: Path) -> Iterator[Cell]:
    with cell(installed) as made:
        yield made


@pytest.fixture
def place(closed_place: Cell) -> Iterator[Cell]:
    yield closed_place
    closed_place.end_all()


@pytest.fixture
def make(place: Cell) -> Make:
    def made(*, timeout_s: float = 10, **parameters: str) -> Subject:
        return Subject(place, f"app{next(NUMBERS)}", parameters, timeout_s)

    return made


@pytest.fixture
def number() -> int:
    """A number that no other test uses: argument of `sleep`, by which processes are told apart."""
    return 100_000 + next(NUMBERS)
