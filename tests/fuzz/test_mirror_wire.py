"""A hostile or broken peer: whatever comes on the two streams, in every stage of a connection.

What must hold: nothing but PeerError (an AssertionError would stop the daemon); no byte written outside the device;
nothing but a handshake for a peer that has not proved itself; every client is answered once the link is gone; and it
makes no difference in which pieces the bytes came.

A failure names its stage and seed: `pytest tests/fuzz -k "STAGE"`, or `attack(STAGE, SEED)` in an interpreter.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

import pytest

from replication.protocol import packets
from replication.protocol.effects import Stream
from replication.protocol.packets import (
    ACK,
    BARRIER,
    BLOCK,
    HEADER,
    LENGTH,
    MAGIC_100,
    META_LENGTH,
    OUT_OF_SYNC,
    P_AUTH_CHALLENGE,
    P_BARRIER,
    P_BARRIER_ACK,
    P_BITMAP,
    P_COMPRESSED_BITMAP,
    P_CONN_ST_CHG_REQ,
    P_DATA,
    P_OUT_OF_SYNC,
    P_PROTOCOL,
    P_RS_DATA_REPLY,
    P_SIZES,
    P_STATE,
    P_STATE_CHG_REQ,
    P_SYNC_PARAM89,
    P_SYNC_UUID,
    P_TRIM,
    P_UUIDS,
    P_ZEROES,
)
from replication.protocol.requests import FLAG_FUA, FLUSH, WRITE
from replication.protocol.states import ConnectionState, DiskState, Role, State
from replication.protocol.volume import Force
from tests.replication.protocol.coupled import MIB, SECRET, MirrorPair, Side, block

ATTACKS = 120
"""For each stage; one takes some milliseconds."""
DATA, META = Stream.DATA, Stream.META


# the stages: who is attacked, and in which state


def stranger(past_features: bool) -> Side:
    pair = MirrorPair(disk_bytes=MIB, hmac_algorithm="sha256", shared_secret=SECRET)
    pair.declare_equal()
    pair.cut()
    pair.plug()
    if past_features:
        pair.alpha.give(DATA, bytearray(packets.features_packet()))
    return pair.alpha


def parameters() -> Side:
    pair = MirrorPair(disk_bytes=MIB)
    pair.declare_equal()
    pair.cut()
    pair.plug()
    pair.alpha.give(DATA, bytearray(packets.features_packet()))
    return pair.alpha


def fresh() -> Side:
    pair = MirrorPair(disk_bytes=MIB)
    pair.connect()
    return pair.beta


def diskless() -> Side:
    pair = MirrorPair(disk_bytes=MIB)
    pair.declare_equal()
    pair.cut()
    pair.beta.start(attach=False)
    pair.connect()
    return pair.beta


def standby() -> Side:
    pair = MirrorPair(disk_bytes=MIB)
    pair.write(pair.with_primary(), 0, block(b"s"))
    return pair.beta


def primary() -> Side:
    pair = MirrorPair(disk_bytes=MIB)
    alpha = pair.with_primary()
    pair.write(alpha, 0, block(b"s"))
    pair.beta.flushes_at_once = False
    pair.flush_without_waiting(alpha)
    for number in range(3):
        alpha.submit(alpha.request(WRITE, number * 8192, block(b"p"), flags=FLAG_FUA * (number == 1)))
    alpha.submit(alpha.request(FLUSH))
    return alpha


def asking(what: str) -> Side:
    pair = MirrorPair(disk_bytes=MIB)
    pair.declare_equal()
    pair.ask(pair.alpha, what)
    pair.alpha.run()
    pair.beta.run()
    pair.alpha.run()
    return pair.alpha


def in_resync(wanted: ConnectionState) -> Side:
    pair = MirrorPair(disk_bytes=MIB, resync_in_flight=2)
    pair.connect()
    pair.ask(pair.alpha, "promote", force=Force.OVERWRITE)
    for _ in range(1000):
        for side in pair.sides:
            side.step()
            if side.volume.state.connection is wanted:
                return side
    raise AssertionError(f"{wanted} was never reached")


STAGES: dict[str, Callable[[], Side]] = {
    "stranger": functools.partial(stranger, False),
    "stranger-past-features": functools.partial(stranger, True),
    "parameters": parameters,
    "fresh": fresh,
    "diskless": diskless,
    "standby": standby,
    "primary": primary,
    "asking-promote": functools.partial(asking, "promote"),
    "asking-invalidate": functools.partial(asking, "invalidate"),
    "asking-disconnect": functools.partial(asking, "disconnect"),
    "bitmap-source": functools.partial(in_resync, ConnectionState.WF_BITMAP_S),
    "bitmap-target": functools.partial(in_resync, ConnectionState.WF_BITMAP_T),
    "waits-for-sync-uuid": functools.partial(in_resync, ConnectionState.WF_SYNC_UUID),
    "source": functools.partial(in_resync, ConnectionState.SYNC_SOURCE),
    "target": functools.partial(in_resync, ConnectionState.SYNC_TARGET),
}


# what is sent to it


@functools.cache
def recorded() -> dict[Stream, list[bytes]]:
    """Packets of a long and peaceful story, whole, of both sides."""
    pair = MirrorPair(disk_bytes=MIB, use_rle=False)
    pair.first_resync()
    pair.write(pair.alpha, 4096, block(b"r", 2), flags=FLAG_FUA)
    pair.trim(pair.alpha, 65536, 8192)
    pair.flush(pair.alpha)
    pair.cut()
    pair.write(pair.alpha, 8192, block(b"c"))
    pair.connect()
    pair.demote(pair.alpha)
    pair.promote(pair.beta)
    pair.demote(pair.beta)
    for what in ("invalidate", "invalidate_remote", "disconnect"):
        assert pair.done(pair.ask(pair.alpha, what))
    found: dict[Stream, list[bytes]] = {stream: [] for stream in Stream}
    for side in pair.sides:
        for stream in Stream:
            for command, body in pair.packets(side, stream):
                found[stream].append(packets.header(command, len(body)) + body[: 64 * 1024])
    return found


class Attacker:
    """Makes bytes from one seed, with a look at the victim for numbers that might mean something to it."""

    def __init__(self, victim: Side, seed: int) -> None:
        self.rng = random.Random(seed)
        self.victim = victim
        data = victim.volume.data
        size = data.size_bytes
        generation = data.generation
        uuids = (generation.current, generation.bitmap, *generation.history, 0, 4, generation.current ^ 1)
        self.uuids = [*uuids, (generation.bitmap + (1 << 48)) & 2**64 - 1, self.rng.getrandbits(64)]
        self.sectors = [0, 1, 8, 16, size // 512 - 8, size // 512 - 1, size // 512, 1 << 31, 2**64 - 1]
        self.sizes = [0, 1, 511, 512, 1024, 4096, 8192, 65536, MIB, MIB + 512, 128 * MIB, 2**32 - 512, 2**32 - 1]
        self.ids = [*data.log.in_flight, packets.ID_SYNCER, 0, 1, self.rng.getrandbits(64)]
        resync = data.resync
        self.asked = list(resync.outstanding.items()) if resync is not None else []
        self.flags = [0, 2, 0x102, 0x112, 0x106, 0x82, 0x502, 0x542, 0x402, 2**32 - 1]

    def stream(self, stream: Stream) -> bytes:
        make = {0: self._junk, 1: self._mutated, 2: self._mutated}
        return b"".join(
            make.get(self.rng.randrange(12), self._plausible)(stream) for _ in range(self.rng.randrange(1, 9))
        )

    def _junk(self, stream: Stream) -> bytes:
        return self.rng.randbytes(self.rng.randrange(1, 64))

    def _mutated(self, stream: Stream) -> bytes:
        packet = bytearray(self.rng.choice(recorded()[stream]))
        for _ in range(self.rng.randrange(3)):
            packet[self.rng.randrange(min(len(packet), 64))] = self.rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        return bytes(packet if self.rng.random() < 0.8 else packet[: self.rng.randrange(len(packet))])

    def _plausible(self, stream: Stream) -> bytes:
        rng = self.rng
        if rng.random() < 0.02:
            return HEADER.pack(MAGIC_100, rng.randrange(2), rng.randrange(0x40), rng.choice(self.sizes), 0)
        return self._meta() if stream is META else self._data()

    def _meta(self) -> bytes:
        rng = self.rng
        command = rng.choice(list(META_LENGTH))
        length = META_LENGTH[command]
        if length == 24:
            offset, size = self._range()
            return ACK.pack(MAGIC_100, 0, command, 24, 0, offset, rng.choice(self.ids), size, 1)
        if command == P_BARRIER_ACK:
            log = self.victim.volume.data.log
            number, count = (log.closed[0].number, log.closed[0].count) if log.closed else (1, 1)
            number, count = number + rng.choice((0, 0, 0, 1, -1)), count + rng.choice((0, 0, 0, 1))
            return BARRIER.pack(MAGIC_100, 0, command, 8, 0, number & 0xFFFFFFFF, count)
        if length == 4:
            code = rng.choice((1, 2, 3, -1, -7, -18, -19, -20, 99))
            return packets.packet(command, code.to_bytes(4, "big", signed=True))
        return packets.packet(command, bytes(length))

    def _data(self) -> bytes:
        rng = self.rng
        command = rng.choice([*LENGTH, P_STATE, P_STATE, P_STATE_CHG_REQ, P_UUIDS, P_DATA, P_RS_DATA_REPLY])
        if command in (P_DATA, P_RS_DATA_REPLY, packets.P_DATA_REPLY):
            offset, size = self._range()
            if command == P_RS_DATA_REPLY and self.asked and rng.random() < 0.8:
                offset, size = self.asked.pop(0)
                offset //= 512
            size = min(size, 16 * MIB // 128)
            block_id = packets.ID_SYNCER if command == P_RS_DATA_REPLY else rng.choice(self.ids)
            head = BLOCK.pack(MAGIC_100, 0, command, 24 + size, 0, offset, block_id, 1, rng.choice(self.flags))
            return head + rng.randbytes(8) * (size // 8) + bytes(size % 8)
        if command in (P_TRIM, P_ZEROES):
            offset, size = self._range()
            return packets.ZEROES.pack(MAGIC_100, 0, command, 28, 0, offset, 7, 1, rng.choice(self.flags), size)
        if command == P_OUT_OF_SYNC:
            return OUT_OF_SYNC.pack(MAGIC_100, 0, command, 16, 0, *self._range(), 0)
        if command == P_BARRIER:
            return BARRIER.pack(MAGIC_100, 0, command, 8, 0, rng.getrandbits(32), 0)
        return packets.packet(command, self._body(command))

    def _body(self, command: int) -> bytes:
        rng = self.rng
        shortest, longest = LENGTH[command]
        if command == P_STATE:
            return self._state().to_bytes(4, "big")
        if command in (P_STATE_CHG_REQ, P_CONN_ST_CHG_REQ):
            known = [(3, 1), (0x1E03, 0x1001), (0x1F0, 0xC0), (0x1F0, 0xB0), (0x1F0, 0x10), (0x1FF0, 0xA10)]
            mask, value = rng.choice([*known, (0x1E00, 0x400), (rng.getrandbits(32), rng.getrandbits(32))])
            return packets.STATE_CHANGE_BODY.pack(mask, value)
        if command == P_UUIDS:
            bits = rng.choice((0, 1, 10, 2**64 - 1))
            return packets.UUIDS_BODY.pack(*(rng.choice(self.uuids) for _ in range(4)), bits, rng.randrange(16))
        if command == P_SYNC_UUID:
            return packets.SYNC_UUID_BODY.pack(rng.choice(self.uuids))
        if command == P_SIZES:
            here = self.victim.volume.size_bytes // 512
            sectors = [rng.choice((here, here, 0, 1, 8, 2 * here, 2**64 - 1)) for _ in range(3)]
            return packets.SIZES_BODY.pack(*sectors, MIB, 0, 0) + bytes(rng.choice((0, 24, 24)))
        if command == P_PROTOCOL and rng.random() < 0.8:
            return packets.PROTOCOL_BODY.pack(3, 0, 0, 0, rng.choice((0, 0, 0, 1)), 0) + b"\0"
        if command == P_SYNC_PARAM89 and rng.random() < 0.8:
            return packets.SYNC_PARAM_BODY.pack(250, b"", b"", 20, 10, 100, 102400)
        if command == P_BITMAP:
            words = -(-self.victim.volume.data.bitmap.block_count // 64) * 8
            return rng.randbytes(rng.choice((0, words, words, 8)))
        if command == P_COMPRESSED_BITMAP:
            return bytes([rng.choice((0x02, 0x82, rng.randrange(256)))]) + rng.randbytes(rng.randrange(1, 9))
        if shortest == 24:
            return packets.BLOCK_BODY.pack(*self._range_and_id(), 0)
        return rng.randbytes(rng.randint(shortest, min(longest, shortest + 64)))

    def _range_and_id(self) -> tuple[int, int, int]:
        sector, size = self._range()
        return sector, self.rng.choice(self.ids), size

    def _range(self) -> tuple[int, int]:
        rng = self.rng
        if rng.random() < 0.7:
            blocks = max(1, self.victim.volume.size_bytes // 4096)
            return rng.randrange(blocks) * 8, 4096
        return rng.choice(self.sectors) & 2**64 - 1, rng.choice(self.sizes)

    def _state(self) -> int:
        rng = self.rng
        if rng.random() < 0.05:
            return rng.getrandbits(32)
        good = rng.random() < 0.6
        return State(
            role=rng.choice(list(Role)),
            peer=rng.choice(list(Role)),
            connection=ConnectionState.CONNECTED if good else rng.choice(list(ConnectionState)),
            disk=DiskState.UP_TO_DATE if good and rng.random() < 0.5 else rng.choice(list(DiskState)),
            peer_disk=rng.choice(list(DiskState)),
        ).encode()


# the attack


def feed(victim: Side, stream: Stream, data: bytes) -> None:
    """What a shell does: offer what came until nothing more is taken."""
    if victim.linked:
        victim.inbox[stream] += data
        victim.run()


def attack(stage: str, seed: int) -> None:
    victim = STAGES[stage]()
    pair = victim.pair
    pair.other(victim).linked = False  # only the attacker speaks
    pair.meta_first = bool(seed & 1)
    attacker = Attacker(victim, seed)
    rng = attacker.rng
    size = victim.volume.size_bytes
    beyond = bytes(victim.disk.content[size : victim.disk.layout.data_bytes])
    asked = [entry[0] for entry in victim.volume.data.log.in_flight.values()]
    for _ in range(rng.randrange(1, 5)):
        stream = rng.choice((DATA, DATA, META))
        feed(victim, stream, attacker.stream(stream))
        if rng.random() < 0.3:
            operation = rng.choice(("demote", "promote", "disconnect", "invalidate", "connect", "outdate", "permit"))
            arguments = ["alpha"] if operation == "permit" else []
            pair.ask(victim, operation, *arguments)
            victim.run()
        if victim.volume.state.role is Role.PRIMARY and rng.random() < 0.5:
            request = victim.request(WRITE, 4096, block(b"q"))
            asked.append(request)
            victim.submit(request)
        if rng.random() < 0.5:
            pair.now += rng.choice((0.1, 1.0, 20.0))
            victim.tick()
            victim.run()
        victim.status  # noqa: B018 - it must not fail either
    if victim.linked:
        victim.linked = False
        victim.act(victim.volume.link_down("the attacker gave up", pair.now))
    victim.run()
    assert bytes(victim.disk.content[size : victim.disk.layout.data_bytes]) == beyond, "written behind the device"
    assert all(request in victim.completed for request in asked), "a client was forgotten"
    assert len(victim.completed) == len({id(request) for request in victim.completed}), "a client was answered twice"
    victim.start()  # what stands on the disk is still metadata


@pytest.mark.parametrize("stage", STAGES)
def test_no_peer_can_do_harm(stage: str) -> None:
    for seed in range(ATTACKS):
        try:
            attack(stage, seed)
        except Exception as error:
            raise AssertionError(f"attack({stage!r}, {seed})") from error


@pytest.mark.parametrize("stage", ["stranger", "stranger-past-features"])
def test_a_stranger_gets_nothing_but_a_handshake(stage: str) -> None:
    for seed in range(ATTACKS):
        victim = STAGES[stage]()
        victim.pair.other(victim).linked = False
        before = bytes(victim.disk.content)
        already = {stream: len(victim.pair.wire[victim.name, stream]) for stream in Stream}
        victim.trail.clear()
        attacker = Attacker(victim, seed)
        data = attacker.stream(DATA)
        if seed % 3 == 0:
            data = packets.features_packet() + data
        if seed % 6 == 0:
            data = packets.features_packet() + packets.packet(P_AUTH_CHALLENGE, attacker.rng.randbytes(64)) + data
        feed(victim, DATA, data)
        feed(victim, META, attacker.stream(META))
        sent = [step for step in victim.trail if step.startswith("send ")]
        assert set(sent) <= {"send P_AUTH_CHALLENGE", "send P_AUTH_RESPONSE", "send P_PING_ACK"}, seed
        assert len(victim.pair.wire[victim.name, DATA]) - already[DATA] <= 2 * (16 + 64), seed
        assert not {"write", "zero", "unmap", "flush", "persist bitmap", "record"} & set(victim.trail), seed
        area = slice(0, victim.disk.layout.superblock_offset)
        assert victim.disk.content[area] == before[area], seed
        assert sum(len(inbox) for inbox in victim.inbox.values()) <= len(data) + 4096, seed


@pytest.mark.parametrize("length", [129, 1 << 20, 0xFFFFFFFF])
@pytest.mark.parametrize("command", [P_AUTH_CHALLENGE, packets.P_AUTH_RESPONSE, P_DATA, packets.P_PING])
def test_a_stranger_cannot_make_us_wait_for_a_large_packet(command: int, length: int) -> None:
    victim = STAGES["stranger-past-features"]()
    victim.pair.other(victim).linked = False
    feed(victim, DATA, HEADER.pack(MAGIC_100, 0, command, length, 0))
    assert not victim.linked


@pytest.mark.parametrize("stage", STAGES)
def test_it_makes_no_difference_in_which_pieces_the_bytes_come(stage: str) -> None:
    for seed in range(8):
        outcomes = []
        for longest in (None, 1, 700):
            rng = random.Random(seed)
            victim = STAGES[stage]()
            victim.pair.other(victim).linked = False
            attacker = Attacker(victim, 1000 + seed)
            rest = attacker.stream(DATA)[: 8 * 1024]
            while rest:
                size = rng.randint(1, longest) if longest is not None else len(rest)
                feed(victim, DATA, rest[:size])
                rest = rest[size:]
            data = victim.volume.data
            outcomes.append(
                (
                    victim.words,
                    data.generation,
                    bytes(data.bitmap.data),
                    bytes(victim.disk.content),
                    data.crashed_primary,
                )
            )
        assert outcomes[0] == outcomes[1], f"{stage}, seed {seed}: whole and byte by byte"
        assert outcomes[0] == outcomes[2], f"{stage}, seed {seed}: whole and in pieces"
