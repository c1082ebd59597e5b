"""Several daemons' events as one stream. Daemons may come and go meanwhile."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from replication.commands import events
from replication.commands.events import Action, Event, Statistics
from replication.commands.status_text import Row
from replication.control import EventStream, MirrorClient, NotRunning, Verb, running
from replication.errors import MirrorError

LOOK_FOR_NEW_S = 1.0


class Watch:
    """The daemons of the resources named, or of all that run. Use as a context manager."""

    def __init__(self, names: list[str] | None, runtime: Path) -> None:
        self._names = names
        self._runtime = runtime
        self._streams: dict[str, EventStream] = {}
        self._look_at = 0.0

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._streams.values():
            stream.close()

    def next(self, timeout_s: float) -> list[tuple[str, dict[str, Any] | None]]:
        """What was told in this time, as soon as something is: resource, and event or None (its daemon has gone)."""
        deadline = time.monotonic() + timeout_s
        told: list[tuple[str, dict[str, Any] | None]] = []
        while not told:
            now = time.monotonic()
            if now >= self._look_at:
                self._look()
                self._look_at = now + LOOK_FOR_NEW_S
            patience_s = max(min(deadline, self._look_at) - time.monotonic(), 0.0)
            ready, _, _ = select.select(list(self._streams.values()), [], [], patience_s)
            for name in [name for name, stream in self._streams.items() if stream in ready]:
                told += self._take(name)
            if time.monotonic() >= deadline:
                break
        return told

    def _look(self) -> None:
        for name in running(self._runtime) if self._names is None else self._names:
            if name not in self._streams:
                with contextlib.suppress(NotRunning):
                    self._streams[name] = MirrorClient(name, self._runtime).events()

    def _take(self, name: str) -> Iterator[tuple[str, dict[str, Any] | None]]:
        try:
            while (event := self._streams[name].next(0.0)) is not None:
                yield name, event
        except MirrorError:
            self._streams.pop(name).close()
            yield name, None


class Until:
    """How long to follow."""

    def __init__(self, deadline: float | None) -> None:
        self._deadline = deadline

    def patience_s(self) -> float:
        return 60.0 if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)

    def over(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline


def follow(names: list[str] | None, runtime: Path, statistics: Statistics, until: Until) -> Iterator[Event]:
    """Everything that happens to these resources from now on, what exists already closed by `exists -`.

    Raises Unavailable when a daemon that runs does not answer at the start.
    """
    known: dict[str, Row] = {}
    for name in running(runtime) if names is None else names:
        with contextlib.suppress(NotRunning):
            known[name] = MirrorClient(name, runtime).ask(Verb.STATUS, 5.0)
            yield from events.between(None, known[name], statistics, appearing=Action.EXISTS)
    yield events.END_OF_START
    with Watch(names, runtime) as watch:
        while not until.over():
            for name, told in watch.next(until.patience_s()):
                if told is not None and "helper" in told:
                    yield events.of_helper(name, told["helper"])
                    continue
                status = told["status"] if told else None
                yield from events.between(known.get(name), status, statistics)
                known.pop(name, None)
                if status:
                    known[name] = status


def wait_until(name: str, runtime: Path, until: Until, reached: Callable[[Row], bool]) -> bool:
    """Look at each status until `reached` says so. False: not in time. Raises NotRunning when the daemon has gone."""
    with Watch([name], runtime) as watch:
        while True:
            told = watch.next(until.patience_s())
            if not told and until.over():
                return False
            for _, event in told:
                if event is None:
                    raise NotRunning(name)
                if "status" in event and reached(event["status"]):
                    return True
