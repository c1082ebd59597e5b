"""What can go wrong, and where exactly a node is struck."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass


class Fault(enum.Enum):
    """Kinds of fault that a run counts."""

    POWER_CUT = "power cut"
    POWER_CUT_AT_PERSIST = "power cut at a persistence point"
    TORN_PERSIST = "torn metadata write"
    TORN_WRITE = "torn data write"
    KILL = "process killed"
    PAUSE = "pause"
    CUT = "link cut"
    CUT_ONE_WAY = "link cut one way"
    RESET = "connection reset"
    SLOW_LINK = "slow link"
    READ_ERROR = "read error"
    WRITE_ERROR = "write error"
    BOTH_OFF = "both without power"
    SPLIT_BRAIN = "both promoted by permit"
    PROMOTE_RACE = "both asked to promote at once"
    PROMOTE_UNFIT = "asked to promote beside an active peer"
    INVALIDATE = "invalidate"
    OUTDATE = "outdate"
    SWITCH = "planned switch"
    TAKEOVER = "takeover by permit"
    DISCONNECT = "disconnect"


class Struck(Exception):
    """The node stops in the middle of what it does. Raised by a simulated port, caught by the node."""


class PowerCut(Struck):
    """What was not flushed may be lost."""


class Killed(Struck):
    """The process dies; its disk keeps what was written."""


class Moment(enum.Enum):
    BEFORE = "before"
    MIDDLE = "in the middle of"
    AFTER = "after"


@dataclass(slots=True)
class Strike:
    """Strike at the n-th effect from now; with `what` only those of that name count (superblock, write, send ...)."""

    exception: type[Struck]
    moment: Moment
    effects_left: int
    what: str = ""


class StrikePoint:
    """Where a node's ports ask, at each effect, whether the node is struck there."""

    def __init__(self) -> None:
        self.armed: Strike | None = None
        self.last = ""

    def arm(self, strike: Strike) -> None:
        self.armed = strike

    def reach(self, what: str) -> Strike | None:
        """The strike that happens at this effect, if any; it is spent then."""
        strike = self.armed
        if strike is None or (strike.what and strike.what != what):
            return None
        strike.effects_left -= 1
        if strike.effects_left > 0:
            return None
        self.armed = None
        self.last = f"{strike.exception.__name__} {strike.moment.value} {what}"
        return strike


def random_strike(rng: random.Random) -> Strike:
    exception = PowerCut if rng.random() < 0.7 else Killed
    what = rng.choice(["", "", "", "superblock", "activity-log", "bitmap", "write", "complete", "send"])
    moment = rng.choice(list(Moment))
    return Strike(exception, moment, rng.randrange(1, 30 if not what else 4), what)
