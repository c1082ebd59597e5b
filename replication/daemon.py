"""mirrord RESOURCE: one side of one mirror. Wiring, clock, and the loop that carries out what the volume decides.

    mirrord r0 [-c FILE|DIRECTORY]

Started by `mirroradm up`. It logs to standard error and ends by `mirroradm down`, or by a disk or configuration it
cannot begin with.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import random
import resource as limits
import secrets
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from replication import config, control
from replication.attach import DeviceSpec
from replication.attendant import Absence, Attendant
from replication.backing_device import BackingDevice, BackingMode, DiskReports
from replication.control import Verb
from replication.control_server import ControlServer, Ticket
from replication.create_metadata import load
from replication.device import METHODS, MirrorDevice
from replication.errors import MirrorError, PeerError, Refusal
from replication.executor import Executor
from replication.handler_programs import HandlerPrograms
from replication.hardening import harden, io_flusher_granted
from replication.loop import Loop
from replication.peer_connection import PeerConnection
from replication.protocol.effects import Answer, Effect, Note, StateChanged
from replication.protocol.requests import Request
from replication.protocol.states import Role, State
from replication.protocol.volume import Force, Volume
from replication.rendezvous import LinkOptions
from replication.resource import BackingIo, DeviceKind, Resource
from replication.side_file import SideFile

TICK_S = 0.05
SNAPSHOT_S = 0.2
DEVICES = Path("/dev/mirrorha")
log = logging.getLogger("mirrord")


class Mirrord:
    """Everything of one daemon. All methods run in the loop's thread, except `snapshot` and `post`."""

    def __init__(self, resource: Resource, local_name: str, runtime: Path, state_directory: Path) -> None:
        """Takes the disk and the port. Raises MirrorError when it cannot."""
        self.resource = resource
        self.local, self.peer = resource.local(local_name), resource.peer(local_name)
        self.loop = Loop()
        self.running = True
        self.warnings = [*resource.warnings, *harden()]
        self._operations: dict[int, Callable[[MirrorError | None], None]] = {}
        self._next_operation = 1
        self._authenticated = False
        self._link_started = False
        self._followed_state: State | None = None
        self._snapshot_due = 0.0
        self._state_changed = False
        options = resource.volume_options(local_name)
        self.volume = Volume(options, lambda: secrets.randbits(64), time.monotonic())
        directory = control.control_path(resource.name, runtime).parent
        control.make_private(directory)
        spec = DeviceSpec(
            directory / "0.nbd",
            DEVICES / resource.name / "0",
            directory / "0.fuse",
            method=METHODS.get(resource.mirror.device, METHODS[DeviceKind.AUTO]),
        )
        spec.socket.unlink(missing_ok=True)  # of a mirrord that was killed: a Secondary has none
        self.device = MirrorDevice(self.loop, spec, resource.mirror.device, self._submit, self._say, self._device_lost)
        self.handlers = HandlerPrograms(self.loop, resource, local_name, self._handler_done)
        self.side_file = SideFile(state_directory / f"{resource.name}.json")
        self.absence = Absence()
        self.disk = BackingDevice(
            self.local.disk,
            self._backing_mode(),
            DiskReports(self.loop.call_soon_threadsafe, self._flushed, self._read_done, self._disk_failed),
            self.absence,
        )
        net = resource.net
        self.link = PeerConnection(
            LinkOptions(
                resource.name,
                (self.local.address, self.local.port),
                (self.peer.address, self.peer.port),
                connect_interval_s=net.connect_interval_s,
                timeout_s=net.timeout_s,
                ko_count=net.ko_count,
                ping_interval_s=net.ping_interval_s,
                ping_timeout_s=net.ping_timeout_s,
                send_buffer_bytes=net.send_buffer_bytes,
                receive_buffer_bytes=net.receive_buffer_bytes,
            ),
            self.loop,
            random.random,
            on_up=self._link_up,
            on_down=self._link_down,
            on_data=self._data_came,
            on_meta=self._meta_came,
            on_backlog=self._backlog,
            on_note=self._say,
        )
        self.executor = Executor(
            lambda effect, fact: self.volume.disk_failed(effect, fact, time.monotonic()),
            self.disk,
            self.link,
            self,
            self.side_file,
            self,
        )
        self._snapshot: dict[str, Any] = {}
        self._take_snapshot()
        self.control = ControlServer(control.control_path(resource.name, runtime), self.snapshot, self.post)
        self.attendant = Attendant(self.absence, lambda _away_s: self.link.answer_pings_meanwhile())

    def _backing_mode(self) -> BackingMode:
        """Buffered where the kernel lets us write out other's pages without waiting for them, else past the cache."""
        wanted = self.resource.mirror.backing_io
        if wanted is BackingIo.AUTO:
            return BackingMode.BUFFERED if io_flusher_granted() else BackingMode.DIRECT
        return BackingMode(wanted.value)

    # life

    def attach(self) -> None:
        """Take the metadata: replay of the activity log, then the volume knows its disk. Raises MirrorError."""
        descriptor = os.open(self.local.disk, os.O_RDWR | os.O_CLOEXEC)
        try:
            attachment = load(descriptor, self.disk.capacity_bytes, self.local.disk)
        finally:
            os.close(descriptor)
        self.disk.limit_data(attachment.layout.data_bytes)
        record, trouble = self.side_file.load()
        if trouble:
            self._say(trouble)
        self._run(self.volume.attach(attachment, record, time.monotonic()))

    def run(self) -> None:
        """Serve until `down`."""
        for warning in self.warnings:
            self._say(warning)
        self.attendant.start()
        self.attach()
        self._ask(self.volume.connect, lambda _error: None)
        self._take_snapshot()
        self.control.start()  # not before: who starts us takes the first answer as a yes, and StandAlone as a no
        gc.collect()
        gc.freeze()
        next_tick = time.monotonic()
        while self.running:
            now = time.monotonic()
            if now >= next_tick:
                self._tick(now)
                next_tick = now + TICK_S
            self.loop.run_once(max(0.0, next_tick - now))

    def close(self) -> None:
        self.device.kill()
        self.link.stop()
        self.control.close()
        self.attendant.stop()
        self.disk.close()
        self.loop.close()

    def _tick(self, now: float) -> None:
        # what a pause of ours left unread comes first: nobody is blamed for our own silence
        self.loop.run_once(0.0)
        self._run(self.volume.tick(now))
        if self._link_started:
            self.link.tick()
        self.handlers.tick()
        self.device.tick()
        self.control.check()
        if self._state_changed or now >= self._snapshot_due:
            self._take_snapshot()
            self._snapshot_due = now + SNAPSHOT_S

    def _run(self, effects: list[Effect]) -> None:
        """Carry out, then let the shell follow what the volume wants now."""
        if effects:
            self.executor.carry_out(effects)
        volume = self.volume
        if volume.state is not self._followed_state:
            self._followed_state = volume.state
            self._follow_state()
        if not self._authenticated and volume.authenticated:
            self._authenticated = True
            self.link.authenticated()
        frontend = self.device.frontend
        if frontend is not None:
            if not volume.accepting or self.link.backlog:
                frontend.pause()
            elif frontend.is_paused:
                frontend.resume()

    def _follow_state(self) -> None:
        wants_link = self.volume.wants_link
        if wants_link is not self._link_started:
            self._link_started = wants_link
            if self._link_started:
                try:
                    self.link.start()
                except MirrorError as error:
                    self._say(str(error))
            else:
                self.link.stop()

    # the link

    def _link_up(self, resolve_conflicts: bool) -> None:
        self._authenticated = False
        self._run(self.volume.link_up(resolve_conflicts, time.monotonic()))

    def _link_down(self, fact: str) -> None:
        self._run(self.volume.link_down(fact, time.monotonic()))

    def _data_came(self, view: memoryview) -> int:
        now = time.monotonic()
        try:
            consumed, effects = self.volume.receive_data(view, now)
        except PeerError as error:
            self._run(self.volume.peer_error(error, now))
            return len(view)
        self._run(effects)
        if self.volume.holding:
            self.link.pause_data()
        return consumed

    def _meta_came(self, view: memoryview) -> int:
        now = time.monotonic()
        try:
            consumed, effects = self.volume.receive_meta(view, now)
        except PeerError as error:
            self._run(self.volume.peer_error(error, now))
            return len(view)
        self._run(effects)
        return consumed

    def _backlog(self, waiting: bool) -> None:
        frontend = self.device.frontend
        if frontend is None:
            return
        if waiting:
            frontend.pause()
        elif self.volume.accepting:
            frontend.resume()

    # the disk

    def _flushed(self, tokens: list[int]) -> None:
        was_holding = self.volume.holding
        for token in tokens:
            self._run(self.volume.flushed(token, time.monotonic()))
        if was_holding and not self.volume.holding:
            self.link.resume_data()

    def _read_done(self, requests: list[Request]) -> None:
        self.device.complete(requests)

    def _disk_failed(self, effect: Effect, fact: str) -> None:
        self._run(self.volume.disk_failed(effect, fact, time.monotonic()))

    # clients: the port of the executor, and the way in

    def _submit(self, requests: list[Request]) -> None:
        self._run(self.volume.submit(requests, time.monotonic()))

    def complete(self, requests: list[Request]) -> None:
        self.device.complete(requests)

    def read(self, requests: list[Request]) -> None:
        self.disk.read_for_clients(requests)

    def device_failed(self, fact: str) -> None:
        self.device.fail(fact)

    def _device_lost(self, fact: str) -> None:
        self._say(fact)
        self._state_changed = True

    # the observer

    def state_changed(self, effect: StateChanged) -> None:
        before, after = effect.before, effect.after
        parts = [
            f"{word}: {old} -> {new}"
            for word, old, new in (
                ("role", before.role, after.role),
                ("connection", before.connection, after.connection),
                ("disk", before.disk, after.disk),
                ("peer", before.peer, after.peer),
                ("peer-disk", before.peer_disk, after.peer_disk),
            )
            if old is not new
        ]
        self._say(f"{', '.join(parts) or 'state'} ({effect.reason})")
        self._state_changed = True

    def note(self, effect: Note) -> None:
        log.log(logging.WARNING if effect.urgent else logging.INFO, "%s", effect.text)

    def call_handler(self, name: str) -> None:
        if self.resource.handlers.command(name):
            self.control.publish({"helper": {"name": name}})
        self.handlers.call(name)

    def _handler_done(self, name: str, exit_code: int) -> None:
        self.control.publish({"helper": {"name": name, "exit-code": exit_code}})
        self._run(self.volume.handler_done(name, exit_code, time.monotonic()))

    def answer(self, effect: Answer) -> None:
        done = self._operations.pop(effect.operation, None)
        if done is not None:
            # an answer must not call into the volume while effects are being carried out
            self.loop.call_soon(lambda: done(effect.error))

    def _say(self, text: str) -> None:
        log.info("%s", text)

    # the operator

    def post(self, verb: str, arguments: dict[str, Any], ticket: Ticket) -> None:
        """From the control thread."""
        self.loop.call_soon_threadsafe(lambda: self._command(verb, arguments, ticket))

    def _ask(self, method: Callable[..., list[Effect]], done: Callable[[MirrorError | None], None], **how: Any) -> None:
        """An operation of the volume; `done` hears its outcome."""
        operation = self._next_operation
        self._next_operation += 1
        self._operations[operation] = done
        self._run(method(operation, now=time.monotonic(), **how))

    def _command(self, verb: str, arguments: dict[str, Any], ticket: Ticket) -> None:
        if not ticket.begin():
            return
        volume, force = self.volume, bool(arguments.get("force"))

        def finish(error: MirrorError | None) -> None:
            self._take_snapshot()
            ticket(error if error is not None else {})

        match verb:
            case Verb.PRIMARY:
                self._promote(Force.OVERWRITE if force else Force.NO, finish)
            case Verb.SECONDARY:
                self._demote(force, finish)
            case Verb.CONNECT:
                self._ask(volume.connect, finish, discard_my_data=bool(arguments.get("discard_my_data")))
            case Verb.DISCONNECT:
                self._ask(volume.disconnect, finish)
            case Verb.INVALIDATE:
                self._ask(volume.invalidate, finish)
            case Verb.INVALIDATE_REMOTE:
                self._ask(volume.invalidate_remote, finish)
            case Verb.OUTDATE:
                self._ask(volume.outdate, finish)
            case Verb.PERMIT:
                self._ask(volume.permit, finish, accept_loss=str(arguments.get("accept_loss", "")))
            case Verb.NEW_CURRENT_UUID:
                self._ask(volume.new_current_uuid, finish)
            case Verb.DETACH:
                self._ask(volume.detach, finish)
            case Verb.ATTACH:
                self._reattach(finish)
            case Verb.DOWN:
                self._down(force, finish)
            case _:
                ticket(Refusal(f"mirror {self.resource.name}", f'mirrord does not know the verb "{verb}"', code=1))

    def _promote(self, force: Force, finish: Callable[[MirrorError | None], None]) -> None:
        def promoted(error: MirrorError | None) -> None:
            if error is not None and self.volume.state.role is Role.PRIMARY and not self.device.is_there:
                # the disk failed in the middle: nothing of the promotion is durable
                self._ask(self.volume.demote, lambda _: finish(error))
            elif error is not None or self.device.is_there:
                finish(error)
            else:
                description = f"mirror {self.resource.name} on {self.local.name}"
                self.device.start(self.volume.size_bytes, description, offered)

        def offered(error: MirrorError | None) -> None:
            if error is None:
                finish(None)
            else:  # Primary without a device would only keep the peer from taking over
                self._ask(self.volume.demote, lambda _: finish(error))

        self._ask(self.volume.promote, promoted, force=force)

    def _demote(self, force: bool, finish: Callable[[MirrorError | None], None]) -> None:
        def gone(error: MirrorError | None) -> None:
            if error is not None:
                finish(error)
            else:
                self._ask(self.volume.demote, finish)

        self.device.stop(force, gone)

    def _down(self, force: bool, finish: Callable[[MirrorError | None], None]) -> None:
        def demoted(error: MirrorError | None) -> None:
            if error is not None:
                finish(error)
            else:
                self._ask(self.volume.disconnect, disconnected)

        def disconnected(_error: MirrorError | None) -> None:
            self._ask(self.volume.detach, detached)

        def detached(error: MirrorError | None) -> None:
            finish(error)
            self.running = error is not None

        self._demote(force, demoted)

    def _reattach(self, finish: Callable[[MirrorError | None], None]) -> None:
        if self.volume.state.disk > 0 or self.volume.wants_link:
            finish(Refusal(f"mirror {self.resource.name}", "has its disk, or is connected", "disconnect it first"))
            return
        try:
            self.attach()
        except MirrorError as error:
            finish(error)
        else:
            finish(None)

    # what others see

    def _take_snapshot(self) -> None:
        status = self.volume.status(time.monotonic())
        own, device = self.resource.hosts.index(self.local), status["devices"][0]
        status["node-id"] = own
        frontend = self.device.frontend
        device |= {
            "minor": self.local.minor,
            "open": frontend is not None and bool(frontend.openers),
            "device": str(self.device.path) if self.device.path else None,
            "backing-disk": self.local.disk,
        }
        connection = status["connections"][0]
        connection |= {
            "peer-node-id": 1 - own,
            "paths": [
                {
                    "this_host": _address(self.local.address, self.local.port),
                    "remote_host": _address(self.peer.address, self.peer.port),
                    "established": self.link.is_up,
                }
            ],
        }
        mirror = status["mirror"]
        mirror["memory-kib"] = limits.getrusage(limits.RUSAGE_SELF).ru_maxrss
        mirror["warnings"] = self.warnings
        mirror["backing-io"] = self.disk.mode.value
        if self.volume.state.role is Role.PRIMARY and not self.device.is_there and not mirror["reason"]:
            mirror["reason"] = "Primary, and its device has ended"
            mirror["remedy"] = f"mirroradm secondary {self.resource.name}, then primary"
        self._snapshot = status
        if self._state_changed:
            self._state_changed = False
            self.control.publish({"status": self.snapshot()})

    def snapshot(self) -> dict[str, Any]:
        """From any thread: the last status, and for how long the loop has been waiting for the disk."""
        since = self.disk.blocked_since
        blocked = round(time.monotonic() - since, 1) if since is not None else 0.0
        mirror = self._snapshot["mirror"] | {"blocked-by-disk-s": blocked if blocked >= 0.5 else None}
        return self._snapshot | {"mirror": mirror}


def _address(address: str, port: int) -> dict[str, Any]:
    return {"address": address, "port": port, "family": "ipv6" if ":" in address else "ipv4"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="mirrord", description=__doc__.splitlines()[0])
    parser.add_argument("resource", help="name of the resource")
    parser.add_argument("-c", "--config", type=Path, default=config.DIRECTORY, help=".res file or directory of them")
    parser.add_argument("--runtime-directory", type=Path, default=control.RUNTIME_DIRECTORY)
    parser.add_argument("--state-directory", type=Path, default=control.STATE_DIRECTORY)
    options = parser.parse_args()
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname).1s %(message)s"
    )  # fmt: skip
    os.chdir("/")
    try:
        lock = control.claim(options.resource, options.runtime_directory)
        name = socket.gethostname()
        mirrord = Mirrord(
            _find(options.resource, options.config), name, options.runtime_directory, options.state_directory
        )
        try:
            mirrord.run()
        finally:
            mirrord.close()
            os.close(lock)
    except MirrorError as error:
        log.error("%s", error)
        sys.exit(control.exit_code(error) or 1)


def _find(name: str, where: Path) -> Resource:
    if where.is_dir():
        return config.find(name, where)
    for resource in config.read_file(where):
        if resource.name == name:
            return resource
    raise Refusal(f"mirror {name}", f"is not defined in {where}", "mirroradm sh-resources", code=1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
