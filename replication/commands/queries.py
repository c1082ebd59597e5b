"""Verbs that change nothing: status, role, cstate, dstate, events2, wait-*, dump, dump-md, sh-resources."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from replication import config
from replication.commands import disk_metadata, follow, status_text, targets
from replication.commands.events import Event, Statistics
from replication.commands.follow import Until
from replication.commands.status_text import Detail, Paint, Row
from replication.config import Resource
from replication.control import Exit, MirrorClient, NotRunning, Verb, exit_code, running
from replication.errors import MirrorError, Refusal

Arguments = argparse.Namespace


def complain(error: MirrorError) -> int:
    """Say it on standard error; the exit code for it."""
    print(f"mirroradm: {error}", file=sys.stderr)
    return exit_code(error)


def each_status(arguments: Arguments, wanted: list[str]) -> tuple[list[Row], int]:
    """Statuses of those that answer; the others are complained of, and give the exit code."""
    rows, code = [], 0
    for name in wanted:
        try:
            try:
                rows.append(MirrorClient(name, arguments.runtime_directory).ask(Verb.STATUS, arguments.timeout))
            except NotRunning as error:
                raise targets.explained(error, name, arguments.config) from None
        except MirrorError as error:
            code = complain(error) or code
    return rows, code


def status(arguments: Arguments) -> int:
    wanted = running_ones(arguments)
    rows, code = each_status(arguments, wanted)
    if arguments.output == "json":
        print(json.dumps(rows, indent=2))
    elif rows or not wanted:
        detail = Detail.VERBOSE if arguments.verbose else Detail.PLAIN
        detail |= Detail.STATISTICS if arguments.statistics else Detail.PLAIN
        print(status_text.render(rows, detail, paint(arguments.color)), end="")
    return code


def paint(choice: str) -> Paint:
    terminal = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    return Paint.ANSI if choice == "always" or (choice == "auto" and terminal) else Paint.NONE


def words(key: str, of: Callable[[Row], list[str]]) -> Callable[[Arguments], int]:
    """A verb that prints one word or more of each status, a line each."""

    def run(arguments: Arguments) -> int:
        rows, code = each_status(arguments, running_ones(arguments))
        if arguments.output == "json":
            print(json.dumps([{"name": row["name"], key: of(row)} for row in rows]))
        else:
            for row in rows:
                print(*of(row), sep="\n")
        return code

    return run


def running_ones(arguments: Arguments) -> list[str]:
    """`all`, or nothing, means those that run: seeing how they are must not take a readable configuration."""
    return targets.names(arguments.resources or [targets.ALL], lambda: running(arguments.runtime_directory))


role = words("role", lambda row: [row["role"]])
cstate = words("connection-state", lambda row: [peer["connection-state"] for peer in row["connections"]])
dstate = words(
    "disk-states",
    lambda row: [
        "/".join([device["disk-state"], *(str(peer["peer-disk-state"]) for peer in peers_of(row, device["volume"]))])
        for device in row["devices"]
    ],
)


def peers_of(row: Row, volume: int) -> list[Row]:
    every = [peer for connection in row["connections"] for peer in connection["peer_devices"]]
    return [peer for peer in every if peer["volume"] == volume]


def events2(arguments: Arguments) -> int:
    asked = arguments.resources or [targets.ALL]
    names = None if targets.ALL in asked else running_ones(arguments)
    statistics = Statistics.SHOWN if arguments.statistics else Statistics.LEFT_OUT
    until = Until(0.0 if arguments.now else deadline(arguments))
    for event in follow.follow(names, arguments.runtime_directory, statistics, until):
        print(event_line(arguments, event), flush=True)
    return 0


def event_line(arguments: Arguments, event: Event) -> str:
    at = datetime.now().astimezone().isoformat(timespec="microseconds") if arguments.timestamps else None
    if arguments.output == "json":
        stamp = {"time": at} if at else {}
        return json.dumps(stamp | {"action": event.action.value, "object": event.object} | event.keys)
    return f"{at} {event}" if at else str(event)


def deadline(arguments: Arguments) -> float | None:
    """None: without end, which --timeout 0 means for the verbs that wait."""
    return time.monotonic() + arguments.timeout if arguments.timeout else None


def wait_sync(arguments: Arguments) -> int:
    return wait(arguments, "no resync runs and both sides are connected", in_sync)


def wait_connect(arguments: Arguments) -> int:
    return wait(arguments, "connected", connected)


def wait(arguments: Arguments, goal: str, reached: Callable[[Row], bool]) -> int:
    code = 0
    for name in targets.names(arguments.resources, lambda: targets.all_defined(arguments.config)):
        progress = Progress(name)

        def look(row: Row, name: str = name, progress: Progress = progress) -> bool:
            refuse_to_wait(name, row)
            progress.show(row)
            return reached(row)

        try:
            until = Until(deadline(arguments))
            client = MirrorClient(name, arguments.runtime_directory)
            client.ask(Verb.STATUS, min(arguments.timeout or 5.0, 5.0))  # no daemon: said at once, not waited for
            if not follow.wait_until(name, arguments.runtime_directory, until, look):
                fact = f"not so within {arguments.timeout:g} s: {goal}"
                raise Refusal(f"mirror {name}", fact, f"mirroradm status {name}", code=Exit.TIME_OVER)
        except MirrorError as error:
            progress.end()
            code = complain(error) or code
        progress.end()
    return code


def connected(row: Row) -> bool:
    return all(connection["connection-state"] == "Connected" for connection in row["connections"])


def in_sync(row: Row) -> bool:
    peers = [peer for connection in row["connections"] for peer in connection["peer_devices"]]
    return connected(row) and all(peer["replication-state"] == "Established" for peer in peers)


def refuse_to_wait(name: str, row: Row) -> None:
    """Nothing comes of waiting for a connection that nobody tries to make."""
    if any(connection["connection-state"] == "StandAlone" for connection in row["connections"]):
        mirror = row.get("mirror", {})
        fact = mirror.get("reason") or "disconnected"
        raise Refusal(f"mirror {name}", f"StandAlone: {fact}", mirror.get("remedy") or f"mirroradm connect {name}")


class Progress:
    """Of a resync, on standard error: a bar on a terminal, elsewhere a line each ten per cent."""

    WIDTH = 40

    def __init__(self, name: str) -> None:
        self._name = name
        self._shown = -1
        self._terminal = sys.stderr.isatty()

    def show(self, row: Row) -> None:
        peers = [peer for connection in row["connections"] for peer in connection["peer_devices"]]
        syncing = [peer for peer in peers if peer.get("done") is not None]
        if not syncing:
            return
        done = float(syncing[0]["done"])
        text = " ".join(status_text.progress(syncing[0]))
        if self._terminal:
            full = int(done / 100 * self.WIDTH)
            bar = f"[{'#' * full}{'.' * (self.WIDTH - full)}]"
            print(f"\r{self._name} {bar} {text}\033[K", end="", file=sys.stderr, flush=True)
            self._shown = 0
        elif done // 10 != self._shown:
            self._shown = int(done // 10)
            print(f"{self._name} {text}", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._terminal and self._shown >= 0:
            print(file=sys.stderr)
            self._shown = -1


def resources_of(arguments: Arguments) -> list[Resource]:
    names = targets.names(arguments.resources, lambda: targets.all_defined(arguments.config))
    return [targets.look_up(name, arguments.config) for name in names]


def dump(arguments: Arguments) -> int:
    resources = resources_of(arguments)
    if arguments.output == "json":
        print(json.dumps([dataclasses.asdict(resource) for resource in resources], indent=2, default=plain))
    else:
        print("\n".join(config.dump(resource) for resource in resources), end="")
    return 0


def plain(value: Any) -> str:
    """An enum member or a path, for JSON."""
    return str(getattr(value, "value", value))


def dump_md(arguments: Arguments) -> int:
    rows = [disk_metadata.read(resource) for resource in resources_of(arguments)]
    if arguments.output == "json":
        print(json.dumps(rows, indent=2))
    else:
        print("\n".join(disk_metadata.render(row) for row in rows), end="")
    return 0


def sh_resources(arguments: Arguments) -> int:
    print(*(resource.name for resource in targets.defined(arguments.config)))
    return 0
