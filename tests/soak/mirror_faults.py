"""The mirror without a cluster engine, at length: links cut, daemons killed, a client that counts how long it waits."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator

from tests.acceptance.mirror import reader, rounds
from tests.acceptance.mirror.pair import MirrorPair
from tests.acceptance.mirror.rounds import Round, Stage
from tests.soak.evidence import Case, Figures
from vagrant.namespaces.lab import Lab

COVERS = (
    "replication/**/*.py",
    "replication/templates/*",
    "vagrant/**/*",
    "tests/acceptance/mirror/*.py",
    "tests/acceptance/mirror/programs/*",
    "tests/soak/mirror_faults.py",
)


def stages(name: str, first: int, count: int) -> Iterator[tuple[int, Stage]]:
    """One laboratory for `count` rounds. What is left to chance in a round depends on its number only."""
    with Lab(engine="none", log=sys.stderr) as lab:
        stage = Stage.set_up(MirrorPair(lab, f"r{os.getpid()}"), random.Random())
        for number in range(first, first + count):
            stage.chance = random.Random(f"{name} {number}")
            yield number, stage


def cut_links(first: int, count: int) -> Iterator[Figures]:
    for _, stage in stages("link cut", first, count):
        yield stage.play(rounds.link_cut, switch=stage.chance.random() < 0.5)


def kill(first: int, count: int) -> Iterator[Figures]:
    """Secondary and Primary take turns; who is Primary is left to chance."""
    for number, stage in stages("kill", first, count):
        one_round: Round = rounds.kill_standby if number % 2 == 0 else rounds.kill_active
        yield stage.play(one_round, switch=stage.chance.random() < 0.5)


def read_meanwhile(first: int, count: int) -> Iterator[Figures]:
    for _, stage in stages("reader", first, count):
        yield {str(fault): reader.meet(stage, fault) for fault in reader.FAULTS}


def summary_of_cuts(figures: list[Figures]) -> Figures:
    return {
        "link_cuts": len(figures),
        "noticed": sum(bool(one["noticed"]) for one in figures),
        "longest_wait_s": max(float(one["longest_wait_s"]) for one in figures),
        **_common(figures),
    }


def summary_of_kills(figures: list[Figures]) -> Figures:
    standby = [one for one in figures if one["killed"] == "Secondary"]
    active = [one for one in figures if one["killed"] == "Primary"]
    return {
        "killed_secondaries": len(standby),
        "killed_primaries": len(active),
        "in_a_resync": sum(bool(one["in_resync"]) for one in figures),
        "longest_wait_s": max(float(one["longest_wait_s"]) for one in standby),
        "client_told_after_s_max": max(float(one["client_told_after_s"]) for one in active),
        **_common(figures),
    }


def _common(figures: list[Figures]) -> Figures:
    """A round that loses a flushed write, leaves something, or ends with unequal disks ends the run: these are all."""
    return {
        "writes": sum(int(one["writes"]) for one in figures),
        "flushes": sum(int(one["flushes"]) for one in figures),
        "flushed_writes_lost": 0,
        "mirrord_peak_kib": max(int(one["mirrord_peak_kib"]) for one in figures),
    }


def summary_of_reader(figures: list[Figures]) -> Figures:
    longest: Figures = {}
    for fault in map(str, reader.FAULTS):
        for kind in ("nbd_read", "read", "write"):
            longest[f"{fault}_longest_{kind}_s"] = max(float(one[fault][f"longest_{kind}_s"]) for one in figures)
    for side in ("active", "standby"):
        longest[f"{side}_peak_kib"] = max(
            int(one[str(fault)][f"{side}_peak_kib"]) for one in figures for fault in reader.FAULTS
        )
    return longest


CUTS = Case(
    name="mirror-link-cuts",
    proves="50 cuts of the mirror's link under load lose no flushed write, leave equal disks, and need no hand.",
    covers=COVERS,
    rounds=50,
    run=cut_links,
    summary=summary_of_cuts,
)
KILLS = Case(
    name="mirror-kills",
    proves="50 kills of mirrord under load, Secondary and Primary in turn, lose no flushed write; the disks get equal.",
    covers=COVERS,
    rounds=50,
    run=kill,
    summary=summary_of_kills,
)
READER = Case(
    name="mirror-reader",
    proves="A client never waits for a failing peer longer than documented; mirrord's memory stays bounded.",
    covers=COVERS,
    rounds=5,
    run=read_meanwhile,
    summary=summary_of_reader,
)
CASES = (CUTS, KILLS, READER)
