"""What a disk that keeps its promises may hold, by what a client was told. Pure: lines in, losses out.

The lines are those of programs/stamps.py. A flush that was answered covers every write answered before it was issued:
each sector of that block holds the stamp of the last such write, or of a later one that was issued. A sector, not a
block: a power cut may tear what no flush covers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Loss:
    """A sector that holds `found` and must hold one of the writes from `at_least` on."""

    block: int
    sector: int
    found: int
    at_least: int


@dataclass(frozen=True)
class Wait:
    """A request from being issued to its answer; monotonic seconds."""

    issued_s: float
    answered_s: float

    @property
    def duration_s(self) -> float:
        return self.answered_s - self.issued_s


class Oracle:
    """Learns of one client after another, and can judge at any time between them."""

    def __init__(self) -> None:
        self.next_number = 1
        self.writes = self.flushes = 0
        """Answered ones of the latest client."""
        self.waits: list[Wait] = []
        """The same, in the order of the answers."""
        self.unanswered = 0
        self._issued: dict[int, list[int]] = {}
        self._safe: dict[int, int] = {}

    def learn(self, lines: Iterable[str]) -> None:
        """The log of a client that has ended, by whatever death."""
        block_of: dict[int, int] = {}
        answered: dict[int, int] = {}
        pending: dict[int, dict[int, int]] = {}
        issued_s: dict[str, float] = {}
        self.waits, self.writes, self.flushes = [], 0, 0
        for line in lines:
            match line.split():
                case ["i", number, block, at_s]:
                    block_of[int(number)] = int(block)
                    self._issued.setdefault(int(block), []).append(int(number))
                    self.next_number = max(self.next_number, int(number) + 1)
                    issued_s["a" + number] = float(at_s)
                case ["a", number, at_s]:
                    written = block_of[int(number)]
                    answered[written] = max(answered.get(written, 0), int(number))
                    self.writes += 1
                    self._waited(issued_s.pop("a" + number), float(at_s))
                case ["f", number, at_s]:
                    pending[int(number)] = dict(answered)
                    issued_s["F" + number] = float(at_s)
                case ["F", number, at_s]:
                    self.flushes += 1
                    for written, write in pending.pop(int(number)).items():
                        self._safe[written] = max(self._safe.get(written, 0), write)
                    self._waited(issued_s.pop("F" + number), float(at_s))
                case _:
                    pass  # the last line of a client that was cut off
        self.unanswered = len(issued_s)
        for written, safe in self._safe.items():
            self._issued[written] = [write for write in self._issued[written] if write >= safe]

    def losses(self, lines: Iterable[str]) -> list[Loss]:
        """`lines` tell the content, a block each."""
        found = []
        for block, line in enumerate(lines):
            safe = self._safe.get(block, 0)
            allowed = {*self._issued.get(block, ()), *(() if safe else (0,))}
            for sector, word in enumerate(line.split()):
                if int(word) not in allowed:
                    found.append(Loss(block, sector, int(word), safe))
        return found

    def longest_wait_s(self) -> float:
        return max((wait.duration_s for wait in self.waits), default=0.0)

    def _waited(self, issued_s: float, answered_s: float) -> None:
        self.waits.append(Wait(issued_s, answered_s))
