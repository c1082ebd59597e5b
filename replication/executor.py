"""Carries out what a volume decided, in order. The daemon and the simulation run this same class on other ports.

The contract is the one in replication/protocol/effects.py. Whoever writes a port needs to know of it:

- an effect is over when the port's method returned; nothing of the next one has begun by then;
- a port never calls back into the volume, nor into the executor, from inside a method: what it learns (a dead link, a
  finished flush, a failed read) it reports later, from the loop;
- buffers passed in may be reused by their owner after `carry_out` returned. A link that could not send all of them
  keeps its views and says so to whoever owns the buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from replication.protocol.effects import (
    Answer,
    Buffer,
    CallHandler,
    Complete,
    DeviceFailed,
    DropLink,
    Effect,
    FlushData,
    Note,
    Persist,
    ReadForClients,
    SaveRecord,
    Send,
    SendBlock,
    StateChanged,
    Stream,
    WriteData,
    Zero,
)
from replication.protocol.errors import DiskFailure
from replication.protocol.requests import Request

MAX_FAILURES_IN_A_ROW = 8
"""A volume that asks a failing disk for more than this, with each answer to a failure, is wrong."""


class Disk(Protocol):
    """Data area and metadata area of one backing device. Offsets and lengths in bytes. All raise DiskFailure."""

    def write(self, writes: list[tuple[int, Buffer]]) -> None:
        """Written when it returns, in list order where ranges overlap; stable after a later flush."""

    def read(self, offset: int, length: int) -> Buffer:
        """Exactly `length` bytes of the data area, in a buffer that nobody reuses."""

    def zero(self, offset: int, length: int, may_unmap: bool) -> None:
        """The range reads as zeroes when it returns."""

    def start_flush(self, token: int) -> None:
        """Make stable what is written by now. Returns at once; the token is reported when it is done."""

    def persist(self, what: str, writes: list[tuple[int, bytes]]) -> None:
        """Write to the metadata device, each write stable before the next, all of them when it returns."""


class Link(Protocol):
    """Both streams to the peer. Never raises: a dead link swallows what it is given and is reported later."""

    def send(self, stream: Stream, buffers: list[Buffer]) -> None: ...

    def drop(self, fact: str) -> None: ...


class Clients(Protocol):
    """Whoever has sent requests."""

    def complete(self, requests: list[Request]) -> None: ...

    def read(self, requests: list[Request]) -> None:
        """Read from the local disk and answer, now or later. Never raises: where the disk fails, the requests are
        answered with EIO and the failure is reported later."""

    def device_failed(self, fact: str) -> None: ...


class Records(Protocol):
    def save(self, record: dict[str, Any]) -> None:
        """Replace the side file; durable when it returns. Raises DiskFailure."""


class Observer(Protocol):
    """The log, events, operators and handler programs."""

    def state_changed(self, effect: StateChanged) -> None: ...

    def note(self, effect: Note) -> None: ...

    def answer(self, effect: Answer) -> None: ...

    def call_handler(self, name: str) -> None:
        """Start it and return; its exit code is reported later."""


class Executor:
    """`volume_disk_failed(effect, fact)` tells the volume of a failed effect and returns what to do instead."""

    def __init__(
        self,
        volume_disk_failed: Callable[[Effect, str], list[Effect]],
        disk: Disk,
        link: Link,
        clients: Clients,
        records: Records,
        observer: Observer,
    ) -> None:
        self._volume_disk_failed = volume_disk_failed
        self._disk = disk
        self._link = link
        self._clients = clients
        self._records = records
        self._observer = observer
        self._busy = False
        self._actions: dict[type[Effect], Callable[[Any], None]] = {
            WriteData: self._write_data,
            Send: self._send,
            Complete: self._complete,
            ReadForClients: self._read_for_clients,
            FlushData: self._flush_data,
            Persist: self._persist,
            SendBlock: self._send_block,
            Zero: self._zero,
            SaveRecord: self._save_record,
            DropLink: self._drop_link,
            StateChanged: self._observer.state_changed,
            Note: self._observer.note,
            Answer: self._observer.answer,
            CallHandler: self._call_handler,
            DeviceFailed: self._device_failed,
        }

    def carry_out(self, effects: Iterable[Effect]) -> None:
        """All of them, in order. Where the disk fails one, the rest is not done; the volume's answer to it is.

        An exception other than DiskFailure is a bug (or a simulated power cut) and passes through.
        """
        assert not self._busy, "an effect called back into the executor: the order of effects would be lost"
        self._busy = True
        actions = self._actions
        try:
            failures = 0
            while True:
                try:
                    for effect in effects:
                        actions[type(effect)](effect)
                    return
                except DiskFailure as failure:
                    failures += 1
                    if failures > MAX_FAILURES_IN_A_ROW:
                        raise AssertionError("the volume goes on using a disk that fails") from failure
                    effects = self._volume_disk_failed(effect, str(failure))
        finally:
            self._busy = False

    def _write_data(self, effect: WriteData) -> None:
        self._disk.write(effect.writes)

    def _send(self, effect: Send) -> None:
        self._link.send(effect.stream, effect.buffers)

    def _complete(self, effect: Complete) -> None:
        self._clients.complete(effect.requests)

    def _read_for_clients(self, effect: ReadForClients) -> None:
        self._clients.read(effect.requests)

    def _flush_data(self, effect: FlushData) -> None:
        self._disk.start_flush(effect.token)

    def _persist(self, effect: Persist) -> None:
        self._disk.persist(effect.what, effect.writes)

    def _send_block(self, effect: SendBlock) -> None:
        self._link.send(Stream.DATA, [effect.header, self._disk.read(effect.offset, effect.length)])

    def _zero(self, effect: Zero) -> None:
        self._disk.zero(effect.offset, effect.length, effect.may_unmap)

    def _save_record(self, effect: SaveRecord) -> None:
        self._records.save(effect.record)

    def _drop_link(self, effect: DropLink) -> None:
        self._link.drop(effect.fact)

    def _call_handler(self, effect: CallHandler) -> None:
        self._observer.call_handler(effect.name)

    def _device_failed(self, effect: DeviceFailed) -> None:
        self._clients.device_failed(effect.fact)
