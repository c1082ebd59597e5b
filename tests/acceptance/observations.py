"""What the watchers saw, and the judgement on it. Pure: lines in, verdicts out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SAMPLE_GAP_S = 0.5
"""Two samples further apart than this belong to different spells: the watcher was paused or died in between."""


@dataclass(frozen=True)
class Spell:
    """A node held the address at every sample from `first_s` to `last_s` (monotonic seconds)."""

    node: str
    first_s: float
    last_s: float


def spells(node: str, lines: Iterable[str]) -> list[Spell]:
    """The spells in the output of one address watch."""
    found: list[Spell] = []
    current: Spell | None = None
    for line in lines:
        words = line.split()
        if len(words) != 2:
            continue  # the last line of a watcher that was cut off
        at_s, present = float(words[0]), words[1] == "1"
        if current is not None and (not present or at_s - current.last_s > SAMPLE_GAP_S):
            found.append(current)
            current = None
        if present:
            current = Spell(node, current.first_s if current else at_s, at_s)
    return [*found, current] if current else found


def held_twice(all_spells: Iterable[Spell]) -> list[tuple[Spell, Spell]]:
    """Pairs of spells of different nodes that overlap: each one is a split brain."""
    ordered = sorted(all_spells, key=lambda spell: spell.first_s)
    return [
        (one, other)
        for index, one in enumerate(ordered)
        for other in ordered[index + 1 :]
        if one.node != other.node and other.first_s <= one.last_s
    ]


def answered_twice(lines: Iterable[str], window_s: float = 0.05) -> list[tuple[str, str]]:
    """Pairs of lines of the ARP watch in which two MACs answered within one question."""
    found = []
    earlier: tuple[float, str, str] | None = None
    for line in lines:
        words = line.split()
        if len(words) != 2:
            continue
        at_s, mac = float(words[0]), words[1]
        if earlier and earlier[1] != mac and at_s - earlier[0] < window_s:
            found.append((earlier[2], line))
        earlier = (at_s, mac, line)
    return found


@dataclass(frozen=True)
class Outage:
    """From the last answer before to the first answer after, as one client saw it; monotonic seconds."""

    last_answer_s: float
    first_answer_s: float

    @property
    def duration_s(self) -> float:
        return self.first_answer_s - self.last_answer_s


def outages(lines: Iterable[str]) -> list[Outage]:
    """Every time at least one request of the client got no answer."""
    found: list[Outage] = []
    last_answer_s: float | None = None
    failing = False
    for line in lines:
        words = line.split()
        if len(words) < 3:
            continue
        if words[2] == "-":
            failing = True
            continue
        answered_s = float(words[1])
        if failing and last_answer_s is not None:
            found.append(Outage(last_answer_s, answered_s))
        last_answer_s, failing = answered_s, False
    return found
