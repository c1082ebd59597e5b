"""What a command is going to do, as values: --dry-run prints them, otherwise they are executed in order."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from replication.commands import daemon_process, disk_metadata
from replication.commands.status_text import yes_no
from replication.config import Resource
from replication.control import MirrorClient, NotRunning, Verb, daemon_pid
from replication.create_metadata import Existing
from replication.errors import MirrorError, Unavailable

Say = Callable[[str], None]
"""Takes a sentence of what was done beyond what was asked."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Have the daemon do something."""

    resource: str
    runtime: Path
    verb: Verb
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [f"{key.replace('_', '-')}={value if isinstance(value, str) else yes_no(value)}"
                 for key, value in self.arguments.items() if value]  # fmt: skip
        return " ".join([f"ask mirrord {self.resource}:", self.verb, *words])

    def execute(self, deadline: float, say: Say) -> None:
        client = MirrorClient(self.resource, self.runtime)
        client.ask(self.verb, max(deadline - time.monotonic(), 0.1), **self.arguments)


@dataclass(frozen=True, slots=True)
class Start:
    """Have a daemon that answers; one that runs already will do."""

    resource: str
    runtime: Path
    command: tuple[str, ...]
    log: Path

    def __str__(self) -> str:
        return f"run {shlex.join(self.command)} >> {self.log}"

    def execute(self, deadline: float, say: Say) -> None:
        if daemon_pid(self.resource, self.runtime) is None:
            daemon_process.start(self.resource, self.command, self.runtime, self.log, deadline)
        else:
            MirrorClient(self.resource, self.runtime).ask(Verb.STATUS, max(deadline - time.monotonic(), 0.1))


@dataclass(frozen=True, slots=True)
class Stop:
    """Have no daemon."""

    resource: str
    runtime: Path

    def __str__(self) -> str:
        return f"ask mirrord {self.resource}: down"

    def execute(self, deadline: float, say: Say) -> None:
        try:
            MirrorClient(self.resource, self.runtime).ask(Verb.DOWN, max(deadline - time.monotonic(), 0.1), force=False)
        except NotRunning:
            self._clean(say)
            return
        if not daemon_process.wait_for_end(self.resource, self.runtime, deadline):
            fact = "its mirrord said yes to down and has not ended"
            raise Unavailable(f"mirror {self.resource}", fact, f"mirroradm down --force {self.resource}")
        self._clean(say)

    def _clean(self, say: Say) -> None:
        for sentence in daemon_process.clean(self.resource, self.runtime):
            say(f"mirror {self.resource}: {sentence}")


@dataclass(frozen=True, slots=True)
class StopByForce:
    """Have no daemon, with its help within half of the time, or else without."""

    resource: str
    runtime: Path

    def __str__(self) -> str:
        return f"ask mirrord {self.resource}: down force=yes; kill it if it has not ended at half the time-out"

    def execute(self, deadline: float, say: Say) -> None:
        half = (time.monotonic() + deadline) / 2
        fact = "its mirrord said yes to down and has not ended"
        try:
            patience_s = max(half - time.monotonic(), 0.1)
            MirrorClient(self.resource, self.runtime).ask(Verb.DOWN, patience_s, force=True)
        except NotRunning:
            fact = ""
        except MirrorError as error:
            fact = f"it did not go down by itself ({error})"
        if daemon_pid(self.resource, self.runtime) is not None and not (
            fact.endswith("not ended") and daemon_process.wait_for_end(self.resource, self.runtime, half)
        ):
            say(f"mirror {self.resource}: {fact}")
            for sentence in daemon_process.kill(self.resource, self.runtime, deadline):
                say(f"mirror {self.resource}: {sentence}")
        for sentence in daemon_process.clean(self.resource, self.runtime):
            say(f"mirror {self.resource}: {sentence}")


@dataclass(frozen=True, slots=True)
class CreateMetadata:
    resource: Resource
    runtime: Path
    existing: Existing
    disk: str

    def __str__(self) -> str:
        return f"write new metadata at the end of {self.disk}, existing: {self.existing.value}"

    def execute(self, deadline: float, say: Say) -> None:
        say(disk_metadata.create(self.resource, self.existing, self.runtime))


Step = Ask | Start | Stop | StopByForce | CreateMetadata
