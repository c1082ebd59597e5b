"""What a volume asks of the world.

The contract with whoever carries them out (replication/executor.py, for the daemon and the simulation alike):

- in list order, each to its end before the next begins, with two exceptions: FlushData and CallHandler only start here,
  and report back later;
- Persist and SaveRecord are on stable storage before the next effect begins (durability order D1 to D10);
- WriteData and Zero are *written* when they end: a later read sees them. They are stable after a later FlushData;
- data in Send and WriteData are views into buffers that may be reused once the list is done, except for what a link
  could not send yet: it says so, and its sender stops reading until it could;
- when the disk fails an effect, the rest of the list is not carried out: the volume hears `disk_failed`, and what it
  returns is carried out instead.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from replication.protocol.errors import MirrorError
from replication.protocol.requests import Request
from replication.protocol.states import State

Buffer = bytes | bytearray | memoryview


class Stream(enum.Enum):
    DATA = "data"
    """Requests, configuration and state; strictly in order."""
    META = "meta"
    """Acknowledgements, pings and replies to state requests; small, never behind bulk data."""


class Effect:
    """Base of all; exists for the type checker."""

    __slots__ = ()


@dataclass(slots=True)
class Send(Effect):
    """Hand the buffers to the link as one gathered send."""

    stream: Stream
    buffers: list[Buffer]


@dataclass(slots=True)
class SendBlock(Effect):
    """Read `length` bytes at `offset` of the data area, and send `header` and them on the data stream."""

    header: Buffer
    offset: int
    length: int


@dataclass(slots=True)
class WriteData(Effect):
    """Write to the data area. Offsets in bytes; neighbours in the list may be joined into one call."""

    writes: list[tuple[int, Buffer]]


@dataclass(slots=True)
class Zero(Effect):
    """Make a range of the data area read as zeroes; `may_unmap` when its storage may be given back."""

    offset: int
    length: int
    may_unmap: bool


@dataclass(slots=True)
class FlushData(Effect):
    """Start to make stable all that is written now; `Volume.flushed(token, now)` when it is."""

    token: int


@dataclass(slots=True)
class Persist(Effect):
    """Write to the metadata area, durably. Offsets in bytes from the start of the metadata device."""

    what: str
    """superblock, activity-log or bitmap: for messages and as the name of a crash point."""
    writes: list[tuple[int, bytes]]


@dataclass(slots=True)
class SaveRecord(Effect):
    """Replace the side file, durably: what v08 metadata has no room for."""

    record: dict[str, Any]


@dataclass(slots=True)
class ReadForClients(Effect):
    """Read and answer these READ requests from the local data area."""

    requests: list[Request]


@dataclass(slots=True)
class Complete(Effect):
    """Answer these requests; each holds its error."""

    requests: list[Request]


@dataclass(slots=True)
class DropLink(Effect):
    """Close both streams after what was sent; nothing of this connection is fed any more."""

    fact: str


@dataclass(slots=True)
class StateChanged(Effect):
    """For the log, events2 and whoever waits."""

    before: State
    after: State
    reason: str


@dataclass(slots=True)
class Note(Effect):
    """Something the log must say once; `urgent` when an operator has to act."""

    text: str
    urgent: bool = False


@dataclass(slots=True)
class CallHandler(Effect):
    """Start a configured helper program; `Volume.handler_done(name, exit_code, now)` when it ended."""

    name: str


@dataclass(slots=True)
class DeviceFailed(Effect):
    """The device the node sees cannot serve any more: end it. The role stays until an operator or agent demotes."""

    fact: str


@dataclass(slots=True)
class Answer(Effect):
    """The outcome of the operator's `operation`: None when done."""

    operation: int
    error: MirrorError | None = None
    details: dict[str, Any] = field(default_factory=dict)


Effects = Sequence[Effect]
