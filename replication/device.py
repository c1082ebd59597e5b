"""The device from promotion to demotion: NBD socket, helper process, and the way back.

It exists only while its node is Primary. Nothing here blocks: progress comes from the loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from replication.attach import Detached, DeviceProcess, DeviceSpec, Ended, Lost, Method, Ready, Refused
from replication.errors import MirrorError, Refusal
from replication.frontend import Frontend
from replication.loop import Loop
from replication.protocol.nbd import Export
from replication.protocol.requests import EIO, ESHUTDOWN, Request
from replication.resource import DeviceKind

METHODS = {
    DeviceKind.AUTO: Method.AUTO,
    DeviceKind.NBD: Method.KERNEL_NBD,
    DeviceKind.FUSE: Method.NBDFUSE_AND_LOOP,
}
START_S, STOP_S = 30.0, 10.0
"""Half of what an operator or agent waits; then the helper is killed, so that an unmount can end."""

Done = Callable[[MirrorError | None], None]


class MirrorDevice:
    """Fulfils, with its front end, the `Clients` port. `lost(fact)` is called when the device ends under its users."""

    def __init__(
        self,
        loop: Loop,
        spec: DeviceSpec,
        kind: DeviceKind,
        submit: Callable[[list[Request]], None],
        note: Callable[[str], None],
        lost: Callable[[str], None],
    ) -> None:
        self._loop, self._spec, self._kind = loop, spec, kind
        self._submit, self._note, self._lost = submit, note, lost
        self.frontend: Frontend | None = None
        self.path: Path | None = None
        """The device's link while it can be used."""
        self._process: DeviceProcess | None = None
        self._starting: Done | None = None
        self._stopping: Done | None = None
        self._refused: MirrorError | None = None
        self._detached = False
        self._deadline: float | None = None

    @property
    def is_there(self) -> bool:
        return self.frontend is not None

    def start(self, size_bytes: int, description: str, done: Done) -> None:
        """Offer the device; `done(None)` when it can be used."""
        frontend = Frontend(
            self._loop, self._spec.socket, Export(size_bytes, description=description), self._submit, self._note
        )
        try:
            frontend.start()
        except MirrorError as error:
            done(error)
            return
        self.frontend = frontend
        if self._kind is DeviceKind.NONE:
            done(None)
            return
        self._refused, self._detached = None, False
        try:
            process = DeviceProcess.start(self._spec)
        except OSError as error:
            self._close_frontend()
            done(MirrorError(f"device {self._spec.device}", f"its helper does not start: {error.strerror}"))
            return
        self._process, self._starting = process, done
        self._deadline = time.monotonic() + START_S
        self._loop.add(process, self._events)

    def stop(self, force: bool, done: Done) -> None:
        """Take the device away; refused while somebody uses it, unless by `force`. `done(None)` when it is gone."""
        frontend = self.frontend
        if frontend is None:
            done(None)
            return
        if self._stopping is not None or self._starting is not None:
            done(Refusal(f"device {self._spec.device}", "is just being made or taken away", "try again"))
            return
        process = self._process
        if process is None:
            users = ", ".join(str(opener) for opener in frontend.openers)
            if users and not force:
                done(Refusal(f"NBD socket {self._spec.socket}", f"is held open by {users}", "end it first", code=11))
                return
            self._close_frontend()
            done(None)
            return
        self._stopping, self._refused = done, None
        self._deadline = time.monotonic() + STOP_S
        if force:
            process.kill()
        else:
            process.request_detach()

    def fail(self, fact: str) -> None:
        """The mirror cannot serve any more: every request fails, and the device goes."""
        if self.frontend is not None:
            self.frontend.close(EIO)
            self.frontend = None
        if self._process is not None:
            self._process.kill()
        self.path = None

    def kill(self) -> None:
        """At once, for the end of the process."""
        self.fail("ends")

    def tick(self) -> None:
        """Missed deadlines: kill the helper, which frees whatever hangs."""
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._deadline = None
            if self._process is not None:
                self._note(f"device {self._spec.device}: not done in time, its helper is killed")
                self._process.kill()

    def _events(self) -> None:
        process = self._process
        if process is None:
            return
        descriptor_is_open = True
        while descriptor_is_open and (event := process.read_event()) is not None:
            if isinstance(event, Ended):
                descriptor_is_open = False
            self._handle(event)

    def _handle(self, event: Ready | Detached | Refused | Lost | Ended) -> None:
        match event:
            case Ready():
                self.path = self._spec.device
                self._deadline = None
                done, self._starting = self._starting, None
                if done is not None:
                    done(None)
            case Detached():
                self._detached = True
            case Refused(subject, fact, remedy):
                self._refused = Refusal(subject, fact, remedy, code=11)
                if self._stopping is not None:  # in use: it goes on as it was
                    done, self._stopping = self._stopping, None
                    self._deadline = None
                    done(self._refused)
            case Lost(subject, fact, _):
                self._note(f"{subject}: {fact}")
            case Ended():
                self._ended()

    def _ended(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        self._loop.remove(process)
        process.close()
        self.path, self._deadline = None, None
        started, self._starting = self._starting, None
        stopped, self._stopping = self._stopping, None
        was_there = self.frontend is not None
        self._close_frontend()
        if started is not None:
            started(self._refused or MirrorError(f"device {self._spec.device}", "its helper ended before it was there"))
        elif stopped is not None:
            stopped(None)
        elif was_there:
            self._lost(f"device {self._spec.device} has ended under its users")

    def _close_frontend(self) -> None:
        if self.frontend is not None:
            self.frontend.close(ESHUTDOWN)
            self.frontend = None

    # the Clients port, but for reads

    def complete(self, requests: list[Request]) -> None:
        if self.frontend is not None:
            self.frontend.complete(requests)
