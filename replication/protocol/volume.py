"""ENTRANCE: one mirrored volume as a pure machine. Bytes, requests, wishes and time in; effects out.

    effects = volume.submit(requests, now)      # from clients, while Primary
    consumed, effects = volume.receive_data(view, now)

Every method returns what the world has to do, in order (the contract is in `effects`). `now` is a monotonic clock in
seconds. Nothing here waits, and nothing is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from replication.protocol import (
    agreement,
    effects,
    handshake,
    loss,
    operations,
    packets,
    receive,
    replicate,
    resync,
    status,
)
from replication.protocol.activity_log import ActivityLog
from replication.protocol.attachment import Attachment, clean_stop
from replication.protocol.effects import Effect, Stream
from replication.protocol.errors import PeerError
from replication.protocol.generation import Generation
from replication.protocol.metadata import MetadataFlag
from replication.protocol.operations import Force
from replication.protocol.options import Fencing, VolumeOptions
from replication.protocol.requests import EIO, Request
from replication.protocol.states import ConnectionState, DiskState, Role, State
from replication.protocol.volume_data import Stage, VolumeData

__all__ = ["Force", "Volume"]

# looked up once: a member of an enum costs ten times what a global does
_CONNECTED, _PARAMETERS = ConnectionState.CONNECTED, Stage.PARAMETERS
_UNLINKED = (ConnectionState.STAND_ALONE, ConnectionState.DISCONNECTING)


class Volume:
    """One side of one mirror."""

    def __init__(self, options: VolumeOptions, random_u64: Callable[[], int], now: float) -> None:
        self.data = VolumeData(options, random_u64, now, since=now)
        self._last: list[Effect] = []
        self._holding = False

    # what the shell asks

    @property
    def state(self) -> State:
        return self.data.state

    @property
    def size_bytes(self) -> int:
        return self.data.size_bytes

    @property
    def accepting(self) -> bool:
        """May requests be submitted? While not, the buffers of those that wait must be left alone."""
        return not self.data.waiting and not self.data.frozen

    @property
    def wants_link(self) -> bool:
        """Should the shell listen, dial, and keep what it has?"""
        return self.data.state.connection not in _UNLINKED

    @property
    def authenticated(self) -> bool:
        """Has the peer of this connection proved itself?"""
        return self.data.session is not None and self.data.session.stage >= _PARAMETERS

    @property
    def holding(self) -> bool:
        """Is the data stream held until a barrier's flush has returned?"""
        return self._holding

    def status(self, now: float) -> dict[str, Any]:
        """What `mirroradm status` shows of this volume (`status.describe`)."""
        self.data.now = now
        return status.describe(self.data)

    # the disk

    def attach(self, attachment: Attachment, record: dict[str, Any], now: float) -> list[Effect]:
        """Take the disk: its metadata, after the replay of the activity log, and the side file.

        The writes of `attachment` must be durable before.
        """
        data = self._at(now)
        superblock = attachment.superblock
        data.layout, data.superblock, data.bitmap = attachment.layout, superblock, attachment.bitmap
        data.generation = Generation(
            superblock.current_uuid, superblock.bitmap_uuid, superblock.history0, superblock.history1
        )
        data.size_bytes = superblock.la_size_sectors * packets.SECTOR_BYTES
        data.crashed_primary = bool(superblock.flags & MetadataFlag.CRASHED_PRIMARY)
        data.peer_outdated = bool(superblock.flags & MetadataFlag.PEER_OUT_DATED)
        data.record = dict(record)
        extents = min(data.options.al_extents, attachment.layout.al_extents_max)
        data.al_extents = extents
        data.activity_log = ActivityLog(extents, attachment.layout)
        data.superblock = None  # nothing to write before the state below is known
        data.change("attaching", disk=DiskState.ATTACHING)
        data.superblock = superblock
        if not superblock.flags & MetadataFlag.CONSISTENT:
            disk = DiskState.INCONSISTENT
        elif not superblock.flags & MetadataFlag.WAS_UP_TO_DATE:
            disk = DiskState.OUTDATED
        elif data.options.fencing is Fencing.DONT_CARE or data.peer_outdated:
            disk = DiskState.UP_TO_DATE
        else:
            disk = DiskState.CONSISTENT
        data.change("attached", disk=disk)
        for text in attachment.notes:
            data.note(f"{data.subject}: {text}")
        return self._effects()

    def detach(self, operation: int, now: float) -> list[Effect]:
        """Put the disk away, clean. Refused while Primary or connected."""
        data = self._at(now)
        if data.state.role is Role.PRIMARY or self.wants_link:
            data.answer(operation, data.refusal("is Primary or connected", "demote and disconnect it first"))
        elif data.superblock is None or data.layout is None:
            data.answer(operation)
        else:
            layout = data.layout

            def stable() -> None:
                data.detaching = None
                if data.superblock is None:
                    return
                data.persist_bitmap()
                for write in clean_stop(data.superblock, layout):
                    data.out.append(effects.Persist("clean-stop", [write]))
                data.superblock = data.activity_log = None
                data.change("detached", disk=DiskState.FAILED)
                data.change("detached", disk=DiskState.DISKLESS)
                data.answer(operation)

            data.detaching = operation
            data.flush(stable)
        return self._effects()

    def flushed(self, token: int, now: float) -> list[Effect]:
        """FlushData `token` has ended well."""
        data = self._at(now)
        data.flushing_extents.pop(token, None)
        for done in data.on_flush.pop(token, []):
            done()
        if data.starved:
            replicate.pump(data)
        if not data.on_flush or self._held_by not in data.on_flush:
            self._holding = False
        return self._effects()

    def disk_failed(self, effect: Effect, fact: str, now: float) -> list[Effect]:
        """The disk could not do `effect`. What was returned together with it, and behind it, does not happen."""
        data = self._at(now)
        self._holding = False
        data.out += self._still_true_after(effect, fact)
        loss.disk_failed(data, fact)
        agreement.link_gone(data)
        return self._effects()

    def _still_true_after(self, failed: Effect, fact: str) -> list[Effect]:
        """Of what was decided together with `failed`, and behind it: what others have to hear all the same."""
        behind = [index for index, effect in enumerate(self._last) if effect is failed]
        kept: list[Effect] = []
        for effect in self._last[behind[0] + 1 :] if behind else []:
            match effect:
                case effects.Answer(operation, error, details):
                    refusal = self.data.refusal(f"the disk failed: {fact}", code=16)
                    kept.append(effects.Answer(operation, error or refusal, details))
                case effects.Complete(requests):
                    for request in requests:
                        request.error = request.error or EIO
                    kept.append(effect)
                case effects.DropLink() | effects.StateChanged() | effects.Note():
                    kept.append(effect)
        return kept

    def handler_done(self, name: str, exit_code: int, now: float) -> list[Effect]:
        """A handler program has ended."""
        data = self._at(now)
        if name == "fence-peer":
            loss.fencing_ended(data, exit_code)
        elif exit_code:
            data.note(f"{data.subject}: handler {name} ended with {exit_code}", urgent=True)
        return self._effects()

    # the link

    def link_up(self, resolve_conflicts: bool, now: float) -> list[Effect]:
        """Both streams exist. `resolve_conflicts`: this node accepted the meta stream."""
        data = self._at(now)
        if data.state.connection is ConnectionState.WF_CONNECTION:
            self._holding = False
            handshake.begin(data, resolve_conflicts)
        else:
            data.out.append(effects.DropLink(f"a connection came up while {data.state.connection}"))
        return self._effects()

    def link_down(self, fact: str, now: float) -> list[Effect]:
        """A stream ended or failed. Idempotent."""
        data = self._at(now)
        if data.session is not None:
            data.session = None
            self._link_gone(fact)
        return self._effects()

    def peer_error(self, error: PeerError, now: float) -> list[Effect]:
        """The peer sent what `receive_data` or `receive_meta` raised PeerError for."""
        data = self._at(now)
        self._holding = False
        loss.peer_misbehaved(data, error)
        agreement.link_gone(data)
        return self._effects()

    def receive_data(self, view: memoryview, now: float) -> tuple[int, list[Effect]]:
        """Bytes of the data stream, in order; returns how many of them are done with, and what to do.

        0 while not `holding` means that a packet is not whole yet. Raises PeerError; what was decided before it is kept
        and comes with the effects of `peer_error`.
        """
        data = self._at(now)
        if self._holding:
            return 0, []
        before = data.next_token
        consumed, held = receive.receive_data(data, view)
        self._heard(consumed)
        if held and data.next_token > before:
            self._holding, self._held_by = True, data.next_token - 1
        return consumed, self._effects()

    def receive_meta(self, view: memoryview, now: float) -> tuple[int, list[Effect]]:
        """Bytes of the meta stream; as `receive_data`."""
        data = self._at(now)
        consumed = receive.receive_meta(data, view)
        self._heard(consumed)
        return consumed, self._effects()

    def _heard(self, consumed: int) -> None:
        # half a packet is no sign of life: it may be the last thing that came through
        if consumed and self.data.session is not None:
            self.data.session.last_receive = self.data.now

    # clients and time

    def submit(self, requests: list[Request], now: float) -> list[Effect]:
        """Requests of clients. Their payload is done with when the effects are carried out and `accepting` holds."""
        data = self._at(now)
        replicate.submit(data, requests)
        return self._effects()

    def tick(self, now: float) -> list[Effect]:
        """Time has passed. Call it after everything readable was fed, so that a pause of ours blames nobody."""
        data = self._at(now)
        self._watch_the_link()
        loss.tick(data)
        agreement.tick(data)
        resync.tick(data)
        log = data.log
        if log.current.count and now - log.last_write >= data.options.epoch_idle_s:
            replicate.close_epoch(data)
        return self._effects()

    def _watch_the_link(self) -> None:
        data = self.data
        session, options, now = data.session, data.options, data.now
        if session is None:
            return
        deadline = options.timeout_s + 4 * options.ping_timeout_s
        oldest, silence = data.log.oldest(), now - session.last_receive
        fact, why = "", ConnectionState.TIMEOUT
        if session.stage < Stage.DECIDED and now - session.started > deadline:
            fact = f"the handshake was not over after {deadline:g} s"
        elif session.ping_sent is not None and now - session.ping_sent > options.ping_timeout_s:
            fact = f"no answer to a ping within {options.ping_timeout_s:g} s"
            why = ConnectionState.NETWORK_FAILURE
        elif oldest is not None and options.ko_count and now - oldest > options.timeout_s * options.ko_count:
            fact = f"no answer to a write within {options.timeout_s * options.ko_count:g} s"
        elif session.stage is Stage.DECIDED and session.ping_sent is None and silence >= options.ping_interval_s:
            session.ping_sent = now
            data.send(Stream.META, packets.packet(packets.P_PING))
        if fact:
            data.note(f"{data.subject}: {data.peer_name}: {fact}", urgent=True)
            self._link_gone(fact, why)

    def _link_gone(self, fact: str, why: ConnectionState = ConnectionState.NETWORK_FAILURE) -> None:
        self._holding = False
        loss.link_lost(self.data, fact, why)
        agreement.link_gone(self.data)

    # the operator; each ends in an Answer

    def promote(self, operation: int, now: float, force: Force = Force.NO) -> list[Effect]:
        """Become Primary; the moment of truth for every takeover."""
        operations.promote(self._at(now), operation, force)
        return self._effects()

    def permit(self, operation: int, accept_loss: str, now: float) -> list[Effect]:
        """Let this side be promoted although the peer may hold newer data; `accept_loss` is our own name."""
        operations.permit(self._at(now), operation, accept_loss)
        return self._effects()

    def demote(self, operation: int, now: float) -> list[Effect]:
        """Become Secondary once all is stable on both sides. The device must be gone."""
        operations.demote(self._at(now), operation)
        agreement.look_if_demoted(self.data)
        return self._effects()

    def connect(self, operation: int, now: float, discard_my_data: bool = False) -> list[Effect]:
        """Look for the peer; with `discard_my_data`, lose a split brain."""
        operations.connect(self._at(now), operation, discard_my_data)
        return self._effects()

    def disconnect(self, operation: int, now: float) -> list[Effect]:
        """Leave the peer and stay alone."""
        operations.disconnect(self._at(now), operation)
        return self._effects()

    def invalidate(self, operation: int, now: float) -> list[Effect]:
        operations.invalidate(self._at(now), operation)
        return self._effects()

    def invalidate_remote(self, operation: int, now: float) -> list[Effect]:
        operations.invalidate_remote(self._at(now), operation)
        return self._effects()

    def outdate(self, operation: int, now: float) -> list[Effect]:
        operations.outdate(self._at(now), operation)
        return self._effects()

    def new_current_uuid(self, operation: int, now: float) -> list[Effect]:
        """Declare both fresh disks equal: no first resync."""
        operations.new_current_uuid(self._at(now), operation)
        return self._effects()

    # plumbing

    _held_by = 0

    def _at(self, now: float) -> VolumeData:
        self.data.now = now
        return self.data

    def _effects(self) -> list[Effect]:
        data = self.data
        if (data.frozen or data.fencing_since is not None) and data.state.connection >= _CONNECTED:
            loss.thaw(data)
        self._last, data.out = data.out, []
        return self._last
