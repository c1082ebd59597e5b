"""What one life of an application leaves in its record, so that the next action finds it again. Pure."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agents.supervision.belonging import Identity


class Trace:
    """Empty when nothing was started since boot, or all of it was stopped.

    token     secret part of the mark in the environment of its processes
    leader    the first process, leader of a session; written before it executes anything
    pidfile   the process that the application's pid file meant when last looked at
    named     those that had the configured name when last looked at
    members   all that a stop found before it began to end them
    """

    def __init__(
        self,
        token: str = "",
        leader: Identity | None = None,
        pidfile: Identity | None = None,
        named: Iterable[Identity] = (),
        members: Iterable[Identity] = (),
    ) -> None:
        self.token = token
        self.leader = leader
        self.pidfile = pidfile
        self.named = frozenset(named)
        self.members = frozenset(members)

    @property
    def is_started(self) -> bool:
        return self.leader is not None

    @property
    def seen(self) -> frozenset[Identity]:
        """All processes but the leader."""
        return self.members | self.named | ({self.pidfile} if self.pidfile else frozenset())

    def with_found(self, pidfile: Identity | None, named: Iterable[Identity]) -> Trace:
        return Trace(self.token, self.leader, pidfile, named, self.members)

    def with_members(self, members: Iterable[Identity]) -> Trace:
        return Trace(self.token, self.leader, self.pidfile, self.named, self.members | frozenset(members))

    @classmethod
    def of_pairs(cls, pairs: Mapping[str, str]) -> Trace:
        """From a record; what does not parse counts as not written."""
        return cls(
            pairs.get("token", ""),
            next(iter(identities(pairs.get("leader", ""))), None),
            next(iter(identities(pairs.get("pidfile", ""))), None),
            identities(pairs.get("named", "")),
            identities(pairs.get("members", "")),
        )

    def pairs(self) -> dict[str, str]:
        return {
            "token": self.token,
            "leader": text_of([self.leader] if self.leader else []),
            "pidfile": text_of([self.pidfile] if self.pidfile else []),
            "named": text_of(self.named),
            "members": text_of(self.members),
        }


def identities(text: str) -> list[Identity]:
    """`12 3400,13 3411`: pid and start time in clock ticks."""
    found = []
    for part in text.split(","):
        words = part.split()
        if len(words) == 2 and all(word.isascii() and word.isdigit() for word in words) and int(words[0]) > 1:
            found.append((int(words[0]), int(words[1])))
    return found


def text_of(processes: Iterable[Identity]) -> str:
    return ",".join(f"{pid} {start}" for pid, start in sorted(processes))
