"""The helper programs of section `handlers`: DRBD's environment, a time limit, and nobody waits for them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable

from replication.loop import Loop
from replication.resource import VOLUME, Resource

TIME_LIMIT_S = 60.0
NOT_RUN = 127
"""What a shell says of a command that is not there."""


class _Running:
    def __init__(self, name: str, process: subprocess.Popen[bytes], deadline: float) -> None:
        self.name = name
        self.process = process
        self.deadline = deadline
        self.descriptor = os.pidfd_open(process.pid)

    def fileno(self) -> int:
        return self.descriptor


class HandlerPrograms:
    """`done(name, exit_code)` is called in the loop's thread, for each that was called."""

    def __init__(self, loop: Loop, resource: Resource, local_name: str, done: Callable[[str, int], None]) -> None:
        self._loop = loop
        self._resource = resource
        self._done = done
        self._running: list[_Running] = []
        local, peer = resource.local(local_name), resource.peer(local_name)
        self._environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "DRBD_RESOURCE": resource.name,
            "DRBD_VOLUME": str(VOLUME),
            "DRBD_MINOR": str(local.minor),
            "DRBD_BACKING_DEV": local.disk,
            "DRBD_LL_DISK": local.disk,
            "DRBD_MY_ADDRESS": local.address,
            "DRBD_MY_AF": "ipv6" if ":" in local.address else "ipv4",
            "DRBD_PEER": peer.name,
            "DRBD_PEERS": peer.name,
            "DRBD_PEER_ADDRESS": peer.address,
            "DRBD_PEER_AF": "ipv6" if ":" in peer.address else "ipv4",
            "DRBD_CONF": str(resource.file),
        }

    def call(self, name: str) -> None:
        """Start it. One that is not configured has nothing to say, except fence-peer: its yes is needed."""
        command = self._resource.handlers.command(name)
        if not command:
            if name == "fence-peer":
                self._loop.call_soon(lambda: self._done(name, NOT_RUN))
            return
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", command],
                stdin=subprocess.DEVNULL,
                env=self._environment,
                start_new_session=True,
            )
        except OSError:
            self._loop.call_soon(lambda: self._done(name, NOT_RUN))
            return
        running = _Running(name, process, time.monotonic() + TIME_LIMIT_S)
        self._running.append(running)
        self._loop.add(running, lambda: self._ended(running))

    def tick(self) -> None:
        """End those that took too long."""
        now = time.monotonic()
        for running in self._running:
            if now >= running.deadline:
                os.killpg(running.process.pid, signal.SIGKILL)
                running.deadline = now + TIME_LIMIT_S

    def _ended(self, running: _Running) -> None:
        self._loop.remove(running)
        self._running.remove(running)
        os.close(running.descriptor)
        self._done(running.name, running.process.wait())
