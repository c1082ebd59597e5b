"""What a volume knows, and the few changes every part of it makes: to its state, its generation, its effects."""

from __future__ import annotations

import dataclasses
import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from replication.protocol import effects, packets
from replication.protocol.activity_log import ActivityLog
from replication.protocol.bitmap import Bitmap
from replication.protocol.bitmap_code import BitmapReceiver
from replication.protocol.effects import Effect, Stream
from replication.protocol.epoch import TransferLog
from replication.protocol.errors import MirrorError, Refusal
from replication.protocol.generation import Generation
from replication.protocol.metadata import Layout, MetadataFlag, Superblock
from replication.protocol.options import VolumeOptions
from replication.protocol.requests import Request
from replication.protocol.states import NEXT_CONNECTION, NEXT_DISK, ConnectionState, DiskState, Role, State

_CLEARED_MAY_BE_UNFLUSHED = (
    ConnectionState.WF_BITMAP_T, ConnectionState.SYNC_TARGET, ConnectionState.PAUSED_SYNC_T
)  # fmt: skip


class Stage(enum.IntEnum):
    """How far the handshake of a connection has come."""

    FEATURES = 0
    CHALLENGE = 1
    RESPONSE = 2
    PARAMETERS = 3
    DECIDED = 4


@dataclass
class PeerFacts:
    """What the peer told of itself in this connection."""

    protocol_seen: bool = False
    discards_its_data: bool = False
    disk_size_bytes: int = 0
    wanted_size_bytes: int = 0
    current_size_bytes: int = 0
    generation: Generation | None = None
    bits_set: int = 0
    flags: packets.UuidFlag = packets.UuidFlag.NONE
    state: State | None = None


@dataclass
class Session:
    """One connection, from both streams up to one of them down."""

    resolve_conflicts: bool
    """We accepted the meta stream: ties are decided by who did."""
    started: float
    stage: Stage = Stage.FEATURES
    protocol_version: int = packets.PROTOCOL_MAX
    features: packets.Feature = packets.Feature.NONE
    own_challenge: bytes = b""
    last_receive: float = 0.0
    ping_sent: float | None = None
    after_ping: list[Callable[[], None]] = field(default_factory=list)
    """What waits for the answer to a ping: everything the peer sent before it has arrived then."""
    sequence: int = 0
    peer: PeerFacts = field(default_factory=PeerFacts)
    bitmap_receiver: BitmapReceiver | None = None
    epoch_count: int = 0
    """Writes received since the last barrier."""
    state_sent: bool = False


class Change(enum.Enum):
    """What we ask the peer to agree to."""

    PROMOTE = "promote"
    PROMOTE_BY_FORCE = "promote by force"
    DISCONNECT = "disconnect"
    INVALIDATE = "invalidate"
    INVALIDATE_REMOTE = "invalidate the peer"


@dataclass
class StateRequest:
    """The one state change that is being asked of the peer."""

    change: Change
    operation: int
    deadline: float
    mask: int
    value: int
    whole_connection: bool = False
    sent: bool = False


@dataclass
class Resync:
    """The running resync, on either side."""

    started: float
    total_blocks: int
    target: bool
    cursor: int = 0
    outstanding: dict[int, int] = field(default_factory=dict)
    """offset -> length in bytes of what was asked and has not arrived; target only."""
    failed_blocks: int = 0
    allowance: float = 0.0
    allowance_at: float = 0.0
    unflushed_bytes: int = 0
    checkpoint_at: float = 0.0
    checkpointing: bool = False
    finishing: bool = False
    marks: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=16))
    """(time, blocks left), for the rate shown."""


Piece = tuple[Request, int, int, memoryview | None]
"""Request, offset, length, payload: at most what one packet carries."""


@dataclass
class VolumeData:
    """Everything a volume knows. One thread; every entrance of `Volume` sets `now` and collects `out`."""

    options: VolumeOptions
    random_u64: Callable[[], int]
    now: float
    out: list[Effect] = field(default_factory=list)
    state: State = field(default_factory=State)
    reason: str = ""
    """Why we are in this state, when it is not a good one; for people."""
    remedy: str = ""
    since: float = 0.0

    layout: Layout | None = None
    superblock: Superblock | None = None
    """The last one persisted; generation and flags of it are derived anew each time."""
    generation: Generation = field(default_factory=lambda: Generation(0, 0, 0, 0))
    bitmap: Bitmap = field(default_factory=lambda: Bitmap(0))
    activity_log: ActivityLog | None = None
    size_bytes: int = 0
    al_extents: int = 0
    """How many extents may be hot; as configured, and as the ring on the disk has room for."""
    crashed_primary: bool = False
    peer_outdated: bool = False
    full_sync: bool = False
    record: dict[str, Any] = field(default_factory=dict)

    session: Session | None = None
    discard_my_data: bool = False
    contacts_lost: int = 0
    """Since we started; a change means that what was known of the peer is old."""
    peer_role_at_loss: Role | None = None
    equal_at_loss: bool = False
    log: TransferLog = field(default_factory=TransferLog)
    resync: Resync | None = None
    request: StateRequest | None = None

    waiting: deque[Piece] = field(default_factory=deque)
    """What clients asked and the activity log has no room for yet, or what is frozen."""
    starved: bool = False
    batch_extents: set[int] = field(default_factory=set)
    """Extents of the batch that is being carried."""
    written_extents: set[int] = field(default_factory=set)
    """Extents written since our last flush began. They stay hot: our own disk may still lose what is in its cache."""
    flushing_extents: dict[int, set[int]] = field(default_factory=dict)
    """The same for each flush under way, by token."""
    frozen: bool = False
    """A fencing handler runs: nothing is answered, nothing accepted."""
    named_later: bool = False
    """Frozen and alone: our data get their own name when we may go on, since until then we hold nothing of our own."""
    fencing_since: float | None = None
    fencing_again: float | None = None
    unanswered: dict[int, Request] = field(default_factory=dict)
    """Flushes and FUA writes, by id(): what a failing disk must fail although no packet of it is in flight."""
    held: list[Request] = field(default_factory=list)
    """Done, and not to be said while frozen."""
    next_block_id: int = 1
    next_token: int = 1
    on_flush: dict[int, list[Callable[[], None]]] = field(default_factory=dict)
    promoting: int | None = None
    """The operation that waits until what came as a Secondary is stable."""
    detaching: int | None = None
    """The operation that waits for a flush before the disk is put away."""
    demoting: int | None = None
    """The operation that waits for everything to be stable."""
    demote_flushed: bool = False

    counters: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("read", "written", "sent", "received", "al-writes", "bm-writes", "resent-blocks"), 0
        )
    )

    # what several parts do

    @property
    def connected(self) -> bool:
        return self.state.connection >= ConnectionState.CONNECTED

    @property
    def peer_name(self) -> str:
        return self.options.peer_name

    @property
    def subject(self) -> str:
        return f"mirror {self.options.resource}"

    def send(self, stream: Stream, *buffers: effects.Buffer) -> None:
        self.out.append(effects.Send(stream, list(buffers)))

    def note(self, text: str, urgent: bool = False) -> None:
        self.out.append(effects.Note(text, urgent))

    def answer(self, operation: int, error: MirrorError | None = None, **details: Any) -> None:
        self.out.append(effects.Answer(operation, error, details))

    def refusal(self, fact: str, remedy: str = "", code: int = 11) -> Refusal:
        return Refusal(self.subject, fact, remedy, code=code)

    def flush(self, done: Callable[[], None]) -> None:
        """Call `done` when all that is written now is stable on our own disk."""
        token = self.next_token
        self.next_token += 1
        self.on_flush[token] = [done]
        if self.written_extents:
            self.flushing_extents[token], self.written_extents = self.written_extents, set()
        self.out.append(effects.FlushData(token))

    def held_extents(self) -> set[int]:
        """What must stay hot: it may be unstable on the peer, or here."""
        return self.log.held_extents().union(self.written_extents, *self.flushing_extents.values())

    def complete(self, requests: list[Request]) -> None:
        """Answer clients; held back while frozen."""
        if self.frozen:
            self.held += requests
        elif requests:
            self.out.append(effects.Complete(requests))

    def change(self, reason: str, generation: Generation | None = None, **fields: Any) -> None:
        """Change state and generation together. What stands in the superblock is durable before any later effect.

        Raises AssertionError for a change the tables of `states` do not know: our bug.
        """
        before = self.state
        after = dataclasses.replace(before, **fields)
        if after.connection is not before.connection:
            assert after.connection in NEXT_CONNECTION[before.connection], (before.connection, after.connection, reason)
        if after.disk is not before.disk:
            allowed = NEXT_DISK[before.disk] | {DiskState.FAILED}
            assert after.disk in allowed, (before.disk, after.disk, reason)
        self.state = after
        if generation is not None:
            self.generation = generation
        if after.peer_disk in (DiskState.INCONSISTENT, DiskState.OUTDATED):
            self.peer_outdated = True
        elif after.peer_disk >= DiskState.CONSISTENT:
            self.peer_outdated = False
        if (
            after.disk is DiskState.UP_TO_DATE
            and after.peer_disk is DiskState.UP_TO_DATE
            and after.connection is ConnectionState.CONNECTED
        ):
            self.crashed_primary = False
        if after != before:
            self.since = self.now
            self.out.append(effects.StateChanged(before, after, reason))
        self.persist_superblock()

    def flags(self) -> MetadataFlag:
        """What the superblock must say of this state."""
        disk = self.state.disk
        flags = MetadataFlag(0)
        if disk > DiskState.INCONSISTENT:
            flags |= MetadataFlag.CONSISTENT
        if disk > DiskState.OUTDATED:
            flags |= MetadataFlag.WAS_UP_TO_DATE
        if self.state.role is Role.PRIMARY:
            flags |= MetadataFlag.PRIMARY_IND
        if self.state.connection > ConnectionState.WF_REPORT_PARAMS:
            flags |= MetadataFlag.CONNECTED_IND
        if self.peer_outdated:
            flags |= MetadataFlag.PEER_OUT_DATED
        if self.crashed_primary:
            flags |= MetadataFlag.CRASHED_PRIMARY
        if self.full_sync:
            flags |= MetadataFlag.FULL_SYNC
        return flags

    def persist_superblock(self) -> None:
        """Write the superblock when it must say something new. `CONNECTED_IND` alone is not worth a write."""
        if self.superblock is None or self.layout is None or self.state.disk < DiskState.NEGOTIATING:
            return
        generation = self.generation
        fresh = dataclasses.replace(
            self.superblock,
            la_size_sectors=self.size_bytes // packets.SECTOR_BYTES,
            current_uuid=generation.current,
            bitmap_uuid=generation.bitmap,
            history0=generation.history0,
            history1=generation.history1,
            flags=self.flags(),
            al_extents=self.al_extents or self.superblock.al_extents,
            clean=False,
        )
        old = self.superblock
        same = dataclasses.replace(
            fresh, flags=(fresh.flags & ~MetadataFlag.CONNECTED_IND) | (old.flags & MetadataFlag.CONNECTED_IND)
        )
        if same == old:
            return
        self.superblock = fresh
        self.out.append(effects.Persist("superblock", [(self.layout.superblock_offset, fresh.encode())]))

    def persist_bitmap(self, extent: int | None = None) -> None:
        """Write the changed pages of the bitmap, or those of one extent."""
        pages = self.bitmap.take_dirty_pages(extent)
        if pages and self.layout is not None:
            self.counters["bm-writes"] += len(pages)
            start = self.layout.bitmap_offset
            self.out.append(effects.Persist("bitmap", [(start + offset, page) for offset, page in pages]))

    def set_out_of_sync(self, offset: int, length: int) -> None:
        """Mark a range. On a Secondary no activity log covers it, so it is durable at once.

        Between the exchange of bitmaps and the first block, too: once that block is written here the source forgets it,
        and our cache may still lose it. Not while a page may hold bits cleared for blocks that are in the cache only:
        in `WFBitMapT` the flush that precedes the exchange is followed by a write of all, and in `SyncTarget` no peer
        sends marks.
        """
        changed = self.bitmap.set_range(offset, length)
        if changed and self.state.role is not Role.PRIMARY and self.state.connection not in _CLEARED_MAY_BE_UNFLUSHED:
            self.persist_bitmap()

    def save_record(self, record: dict[str, Any]) -> None:
        """Replace the side file when it changes."""
        if record != self.record:
            self.record = record
            self.out.append(effects.SaveRecord(dict(record)))
