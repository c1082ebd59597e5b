"""Fifty power cuts of the mirror's Primary in a row, under fio, SQLite and PostgreSQL, on ext4 and XFS."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator

from tests.acceptance.mirror.pair import MirrorPair
from tests.acceptance.mirror.power_cuts import EXT4, XFS, Beside, Load, Permit, cut_primary, laboratory
from tests.acceptance.mirror.writers import BLOCKS, POSTGRES, SQLITE
from tests.soak.evidence import Case, Figures

APPLICATIONS = (
    ((BLOCKS,), Beside.FIO),
    ((SQLITE,), Beside.NOTHING),
    ((POSTGRES,), Beside.NOTHING),
)
Cut = Callable[[MirrorPair, str, Load, Permit, random.Random], Figures]


def play(cut: Cut, first: int, count: int) -> Iterator[Figures]:
    """Rounds from `first`, one after the other in one laboratory. Every combination comes within twelve."""
    with laboratory() as pair:
        for number in range(first, first + count):
            applications, beside = APPLICATIONS[number % 3]
            load = Load((EXT4, XFS)[number // 3 % 2], applications, beside)
            permit = list(Permit)[number // 2 % 2]
            yield cut(pair, pair.nodes[number % 2], load, permit, random.Random(number))


def run(first: int, count: int) -> Iterator[Figures]:
    return play(cut_primary, first, count)


def summary(figures: list[Figures]) -> Figures:
    records: dict[str, int] = {}
    for one in figures:
        for name, count in one["acknowledged"].items():
            records[name] = records.get(name, 0) + count
    return {
        "cuts": len(figures),
        "acknowledged": records,
        "lost": sum(int(one["lost"]) for one in figures),
        "file_systems": {name: sum(one["file_system"] == name for one in figures) for name in ("ext4", "xfs")},
        "resynced_mib_median": round(statistics.median(one["resynced_kib"] for one in figures) / 1024),
    }


CASE = Case(
    name="mirror-power-cuts",
    proves="After each of 50 power cuts of the mirror's Primary the other has all that was acknowledged to fio, SQLite"
    " and PostgreSQL, on a file system without a fault; the one that was cut comes back as its standby.",
    covers=(
        "replication/**/*.py",
        "vagrant/**/*",
        "tests/acceptance/mirror/pair.py",
        "tests/acceptance/mirror/power_cuts.py",
        "tests/acceptance/mirror/writers.py",
        "tests/acceptance/mirror/programs/*_writer.py",
        "tests/soak/evidence.py",
        "tests/soak/mirror_power_cuts.py",
    ),
    rounds=50,
    run=run,
    summary=summary,
)
