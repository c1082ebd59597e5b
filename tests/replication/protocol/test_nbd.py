"""The NBD machines alone: no socket, all inputs by hand or by chance."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.protocol.nbd import (
    GREETING,
    PAYLOAD_BYTES_MAX,
    READ_BYTES_MAX,
    REPLY_BYTES,
    Batch,
    ClientError,
    Export,
    Handshake,
    Parser,
    Phase,
    pack_replies,
)
from replication.protocol.requests import (
    CACHE,
    DISCONNECT,
    EINVAL,
    EIO,
    ENOSPC,
    ESHUTDOWN,
    FLAG_FUA,
    FLAG_NO_HOLE,
    FLUSH,
    READ,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    Request,
)

MIB = 1 << 20
EXPORT = Export(64 * MIB, description="r0 on alpha")
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED_REPLY = 1, 2, 3, 5, 6, 7, 8
ACK, SERVER, INFO_REPLY = 1, 2, 3
UNSUPPORTED, INVALID, UNKNOWN, SHUTDOWN = (1 << 31 | number for number in (1, 3, 6, 7))
TO_THE_END = 1 << 40


def option(number: int, data: bytes = b"", length: int | None = None) -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data) if length is None else length) + data


def info(number: int = GO, name: bytes = b"", asked: tuple[int, ...] = ()) -> bytes:
    data = struct.pack(">I", len(name)) + name + struct.pack(f">H{len(asked)}H", len(asked), *asked)
    return option(number, data)


def answers(stream: bytes) -> list[tuple[int, int, bytes]]:
    """Option, kind and data of each reply in the stream."""
    if not stream:
        return []
    magic, number, kind, length = struct.unpack(">QIII", stream[:20])
    assert magic == 0x3E889045565A9
    return [(number, kind, stream[20 : 20 + length]), *answers(stream[20 + length :])]


def negotiate(*sent: bytes, flags: int = 3, stopping: bool = False) -> tuple[Handshake, bytes]:
    handshake = Handshake(EXPORT)
    handshake.stopping = stopping
    stream = flags.to_bytes(4, "big") + b"".join(sent)
    consumed, answer = handshake.receive(memoryview(stream))
    assert consumed == len(stream)
    return handshake, answer


def request(
    command: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0, cookie: int = 1
) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length or len(data)) + data


def parse(stream: bytes, parser: Parser | None = None, room: int = 1000, read_room: int = TO_THE_END) -> Batch:
    return (parser or Parser("client", EXPORT)).parse(memoryview(stream), room, read_room)


def verdict(stream: bytes) -> int | None:
    """None when the volume gets the request, else the error of the reply."""
    batch = parse(stream)
    assert batch.consumed == len(stream)
    assert len(batch.requests) + len(batch.answered) == 1
    return batch.answered[0].error if batch.answered else None


Told = list[tuple[int, int, int, int, int, bytes, int]]


def told(requests: list[Request]) -> Told:
    return [(r.command, r.flags, r.cookie, r.offset, r.length, bytes(r.data or b""), r.error) for r in requests]


# handshake


def test_the_greeting_offers_fixed_newstyle_without_zeroes() -> None:
    assert struct.unpack(">QQH", GREETING) == (0x4E42444D41474943, 0x49484156454F5054, 3)


def test_go_describes_the_export_and_leads_to_requests() -> None:
    handshake, answer = negotiate(info(GO))
    assert handshake.phase is Phase.TRANSMISSION
    flags = 0b1_0110_1101
    assert answers(answer) == [
        (GO, INFO_REPLY, struct.pack(">HQH", 0, 64 * MIB, flags)),
        (GO, INFO_REPLY, struct.pack(">HIII", 3, 512, 4096, 4 * MIB)),
        (GO, ACK, b""),
    ]


def test_info_tells_what_was_asked_for_and_the_negotiation_goes_on() -> None:
    handshake, answer = negotiate(info(INFO, asked=(1, 2, 3, 77)))
    assert handshake.phase is Phase.OPTIONS
    assert [data for _, kind, data in answers(answer) if kind == INFO_REPLY and data[1] in (1, 2)] == [
        b"\0\1",
        b"\0\2r0 on alpha",
    ]


def test_list_names_the_one_export() -> None:
    assert answers(negotiate(option(LIST))[1]) == [(LIST, SERVER, b"\0\0\0\0r0 on alpha"), (LIST, ACK, b"")]


def test_abort_is_acknowledged_and_ends_it() -> None:
    handshake, answer = negotiate(option(ABORT))
    assert handshake.phase is Phase.ENDED
    assert answers(answer) == [(ABORT, ACK, b"")]


@pytest.mark.parametrize(("flags", "zeroes"), [(1, 124), (3, 0)])
def test_the_old_way_in_pads_with_zeroes_unless_that_was_agreed_away(flags: int, zeroes: int) -> None:
    handshake, answer = negotiate(option(EXPORT_NAME), flags=flags)
    assert handshake.phase is Phase.TRANSMISSION
    assert answer == struct.pack(">QH", 64 * MIB, 0b1_0110_1101) + bytes(zeroes)


@pytest.mark.parametrize("number", [0, 4, STARTTLS, STRUCTURED_REPLY, 9, 10, 11, 0xFFFFFFFF])
def test_options_we_do_without_are_declined_and_their_data_skipped(number: int) -> None:
    handshake, answer = negotiate(option(number, b"some data"), info(GO))
    assert answers(answer)[0][:2] == (number, UNSUPPORTED)
    assert handshake.phase is Phase.TRANSMISSION


@pytest.mark.parametrize(
    "sent",
    [
        option(GO),
        option(GO, b"\0\0\0"),
        option(GO, b"\0\0\0\1"),
        option(GO, b"\xff\xff\xff\xff\0\0"),
        option(GO, b"\0\0\0\0\0\1"),
        option(INFO, b"\0\0\0\0\0\0\0"),
        option(LIST, b"x"),
    ],
)
def test_lengths_that_do_not_add_up_are_answered_and_forgiven(sent: bytes) -> None:
    handshake, answer = negotiate(sent)
    assert [kind for _, kind, _ in answers(answer)] == [INVALID]
    assert handshake.phase is Phase.OPTIONS


def test_an_unknown_name_is_answered_where_that_is_possible() -> None:
    assert [kind for _, kind, _ in answers(negotiate(info(GO, b"other"))[1])] == [UNKNOWN]
    with pytest.raises(ClientError, match="'other'"):
        negotiate(option(EXPORT_NAME, b"other"))


def test_a_device_that_is_being_stopped_takes_nobody_in() -> None:
    _, answer = negotiate(option(LIST), info(INFO), info(GO), stopping=True)
    assert [kind for _, kind, _ in answers(answer)] == [SHUTDOWN] * 3
    with pytest.raises(ClientError, match="stopped"):
        negotiate(option(EXPORT_NAME), stopping=True)


@pytest.mark.parametrize(
    ("stream", "fact"),
    [
        (b"\0\0\0\2", "flags 0x2"),
        (b"\0\0\0\7", "flags 0x7"),
        (b"\0\0\0\3" + b"GET / HTTP/1.1\r\n", "IHAVEOPT"),
        (b"\0\0\0\3" + option(GO, length=8193), "8193 bytes"),
        (b"\0\0\0\3" + option(99) * 65, "without end"),
    ],
)
def test_what_cannot_be_a_client_is_closed(stream: bytes, fact: str) -> None:
    with pytest.raises(ClientError, match=fact):
        Handshake(EXPORT).receive(memoryview(stream))


def test_a_handshake_byte_by_byte_says_the_same_and_leaves_the_requests_alone() -> None:
    stream = b"\0\0\0\3" + option(STRUCTURED_REPLY) + option(LIST) + info(INFO, asked=(1, 2)) + info(GO)
    whole_consumed, whole = Handshake(EXPORT).receive(memoryview(stream + request(FLUSH)))
    assert whole_consumed == len(stream)
    handshake, kept, pieces = Handshake(EXPORT), b"", b""
    for byte in stream:
        kept += bytes([byte])
        consumed, answer = handshake.receive(memoryview(kept))
        kept, pieces = kept[consumed:], pieces + answer
    assert (pieces, kept, handshake.phase) == (whole, b"", Phase.TRANSMISSION)


options = st.builds(option, st.integers(0, 12), st.binary(max_size=40)) | st.builds(
    info, st.sampled_from([INFO, GO]), st.sampled_from([b"", b"x"]), st.lists(st.integers(0, 9), max_size=3).map(tuple)
)


@given(st.lists(options | st.binary(max_size=30), max_size=100), st.booleans())
def test_no_bytes_bring_a_handshake_to_anything_but_its_declared_error(pieces: list[bytes], stopping: bool) -> None:
    handshake, kept, answered = Handshake(EXPORT), b"", 0
    handshake.stopping = stopping
    for piece in [b"\0\0\0\3", *pieces]:
        kept += piece
        try:
            consumed, answer = handshake.receive(memoryview(kept))
        except ClientError:
            return
        kept, answered = kept[consumed:], answered + len(answer)
        if handshake.phase in (Phase.TRANSMISSION, Phase.ENDED):
            return
        assert len(kept) < 16 + 8192, "an option that is complete must be consumed"
        assert answered < 64 * 200, "a client can make us say only so much"


# requests


def test_a_batch_is_cut_out_in_place_and_its_payloads_are_views() -> None:
    stream = bytearray(
        request(WRITE, 4096, data=b"a" * 512, flags=FLAG_FUA, cookie=7)
        + request(READ, 8192, 4096, cookie=8)
        + request(FLUSH, cookie=9)
        + request(WRITE, 0, data=b"b" * 1024)[:-1]
    )
    parser = Parser("client", EXPORT)
    batch = parser.parse(memoryview(stream), 1000, TO_THE_END)
    assert batch.consumed == len(stream) - 28 - 1023
    assert batch.read_bytes == 4096
    assert told(batch.requests) == [
        (WRITE, FLAG_FUA, 7, 4096, 512, b"a" * 512, 0),
        (READ, 0, 8, 8192, 4096, b"", 0),
        (FLUSH, 0, 9, 0, 0, b"", 0),
    ]
    assert {r.client for r in batch.requests} == {"client"}
    assert parser.needed_bytes == 28 + 1024
    stream[28] = ord("z")
    assert batch.requests[0].data is not None
    assert bytes(batch.requests[0].data[:2]) == b"za"


END = EXPORT.size_bytes
ANYTHING = [READ, TRIM, WRITE_ZEROES]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        *((request(command, END - 512, 512), None) for command in ANYTHING),
        (request(WRITE, END - 512, data=bytes(512)), None),
        (request(READ, END, 512), EINVAL),
        (request(TRIM, END - 512, 1024), EINVAL),
        (request(WRITE_ZEROES, END - 512, 1024), ENOSPC),
        (request(WRITE, END, data=bytes(512)), ENOSPC),
        (request(WRITE, (1 << 64) - 512, data=bytes(512)), ENOSPC),
        (request(READ, (1 << 64) - 512, 1024), EINVAL),
        *((request(command, 256, 512), EINVAL) for command in ANYTHING),
        *((request(command, 512, 100), EINVAL) for command in ANYTHING),
        (request(WRITE, 1, data=bytes(512)), EINVAL),
        (request(WRITE, 0, data=b"x"), EINVAL),
        *((request(command, 512), 0) for command in [*ANYTHING, WRITE]),
        *((request(command, END), 0) for command in [*ANYTHING, WRITE]),
        (request(WRITE, END + 512), ENOSPC),
        (request(FLUSH, 512), EINVAL),
        (request(FLUSH, 0, 512), EINVAL),
        *((request(command, 0, 512, flags=FLAG_FUA), None) for command in ANYTHING),
        (request(FLUSH, flags=FLAG_FUA), None),
        (request(WRITE_ZEROES, 0, 512, flags=FLAG_FUA | FLAG_NO_HOLE), None),
        (request(TRIM, 0, 512, flags=FLAG_NO_HOLE), EINVAL),
        (request(WRITE, 0, data=bytes(512), flags=FLAG_NO_HOLE), EINVAL),
        (request(WRITE_ZEROES, 0, 512, flags=16), EINVAL),
        (request(READ, 0, 512, flags=4), EINVAL),
        *((request(command, 0, 512), EINVAL) for command in (CACHE, 7, 8, 0xFFFF)),
        (request(WRITE, 0, data=bytes(PAYLOAD_BYTES_MAX)), None),
        (request(READ, 0, READ_BYTES_MAX), None),
        (request(READ, 0, READ_BYTES_MAX + 512), EINVAL),
        (request(TRIM, 0, END), None),
        (request(WRITE_ZEROES, 0, END), None),
    ],
)
def test_the_volume_sees_only_what_a_disk_can_do(stream: bytes, expected: int | None) -> None:
    assert verdict(stream) == expected


@pytest.mark.parametrize("excess", [512, 1 << 31])
def test_a_write_that_is_too_long_is_answered_once_its_data_are_swallowed(excess: int) -> None:
    length = PAYLOAD_BYTES_MAX + excess
    parser = Parser("client", EXPORT)
    chunk = memoryview(bytes(MIB))
    assert parse(request(WRITE, 0, length, cookie=5), parser).consumed == 28
    left = length
    while left > len(chunk):
        batch = parser.parse(chunk, 1000, TO_THE_END)
        assert (batch.consumed, batch.answered) == (len(chunk), [])
        left -= len(chunk)
    batch = parse(bytes(left) + request(READ, 0, 512, cookie=6), parser)
    assert [(r.cookie, r.error) for r in batch.answered] == [(5, EINVAL)]
    assert [r.cookie for r in batch.requests] == [6]


def test_after_disconnect_nothing_is_taken() -> None:
    parser = Parser("client", EXPORT)
    stream = request(FLUSH) + request(DISCONNECT) + request(FLUSH)
    batch = parse(stream, parser)
    assert (batch.consumed, len(batch.requests), parser.disconnecting) == (56, 1, True)
    assert parse(stream[56:], parser).consumed == 0


def test_a_device_that_is_being_stopped_answers_for_the_volume() -> None:
    parser = Parser("client", EXPORT)
    parser.stopping = True
    sent = [request(WRITE, 0, data=bytes(512)), request(READ, 0, 512), request(FLUSH), request(77), request(TRIM, 0, 0)]
    batch = parse(b"".join(sent), parser)
    assert [r.error for r in batch.answered] == [ESHUTDOWN] * 5
    assert batch.requests == []


def test_a_batch_ends_where_the_room_ends() -> None:
    stream = request(READ, 0, MIB) * 10
    assert len(parse(stream, room=3).requests) == 3
    assert len(parse(stream, read_room=1).requests) == 1
    parser = Parser("client", EXPORT)
    parse(request(WRITE, 0, PAYLOAD_BYTES_MAX + 1), parser)
    batch = parse(bytes(PAYLOAD_BYTES_MAX + 1) + request(99) * 3, parser, room=2)
    assert len(batch.answered) == 2
    batch = parse(stream, read_room=4 * MIB)
    assert (len(batch.requests), batch.read_bytes, batch.consumed) == (4, 4 * MIB, 4 * 28)


def test_what_stands_before_garbage_is_still_done() -> None:
    parser = Parser("client", EXPORT)
    stream = request(FLUSH) + b"garbage, and enough of it to be a header"
    batch = parse(stream, parser)
    assert (batch.consumed, len(batch.requests)) == (28, 1)
    with pytest.raises(ClientError, match="0x67617262"):
        parse(stream[28:], parser)


lengths = st.sampled_from([0, 1, 511, 512, 1024, 4096])
small_requests = st.builds(
    lambda command, offset, length, flags, cookie: request(
        command, offset, length, bytes(length) if command == WRITE else b"", flags, cookie
    ),
    st.sampled_from([READ, WRITE, WRITE, WRITE, FLUSH, TRIM, CACHE, WRITE_ZEROES, 9]),
    st.sampled_from([0, 1, 512, 4096, END - 512, END, 1 << 63]),
    lengths,
    st.integers(0, 4),
    st.integers(0, 2**64 - 1),
)


@given(
    st.lists(small_requests, max_size=8),
    st.booleans(),
    st.lists(small_requests, max_size=3),
    st.lists(st.sampled_from([1, 5, 27, 28, 29, 540, 5 * MIB]), min_size=1),
)
def test_in_one_piece_or_in_many_the_requests_are_the_same(
    first: list[bytes], with_too_long: bool, last: list[bytes], cuts: list[int]
) -> None:
    oversized = request(WRITE, 0, PAYLOAD_BYTES_MAX + 1) + bytes(PAYLOAD_BYTES_MAX + 1) if with_too_long else b""
    stream = b"".join(first) + oversized + b"".join(last) + request(DISCONNECT)

    def taken(sizes: Callable[[int], int]) -> tuple[Told, Told, int]:
        parser, done, told_requests, told_answers = Parser("client", EXPORT), 0, Told(), Told()
        start = end = turn = 0
        while not parser.disconnecting:
            assert start < len(stream), "DISC is at the end"
            end = min(len(stream), end + sizes(turn))
            turn += 1
            while (batch := parser.parse(memoryview(stream)[start:end], 1000, TO_THE_END)).consumed:
                start += batch.consumed
                told_requests += told(batch.requests)
                told_answers += told(batch.answered)
            done = start
        return told_requests, told_answers, done

    # byte by byte through megabytes to be swallowed would prove nothing more
    assert taken(lambda _: len(stream)) == taken(lambda turn: cuts[turn % len(cuts)] if turn < 500 else 5 * MIB)


def test_byte_by_byte_the_requests_are_the_same() -> None:
    stream = (
        request(WRITE, 512, data=b"x" * 512, cookie=1)
        + request(WRITE, 1, data=b"y" * 3, cookie=2)
        + request(READ, 0, 512, cookie=3)
        + request(WRITE, 1024, data=b"z" * 1024, flags=FLAG_FUA, cookie=4)
    )
    whole = parse(stream)
    parser, start = Parser("client", EXPORT), 0
    requests: Told = []
    answered: Told = []
    for end in range(1, len(stream) + 1):
        batch = parse(stream[start:end], parser)
        start += batch.consumed
        requests += told(batch.requests)
        answered += told(batch.answered)
    assert (requests, answered) == (told(whole.requests), told(whole.answered))


@given(st.lists(small_requests | st.binary(max_size=60), max_size=20), st.integers(1, 5), st.booleans())
def test_no_bytes_bring_the_parser_to_anything_but_its_declared_error(
    pieces: list[bytes], room: int, stopping: bool
) -> None:
    parser, kept = Parser("client", EXPORT), b""
    parser.stopping = stopping
    for piece in pieces:
        kept += piece
        while True:
            try:
                batch = parse(kept, parser, room)
            except ClientError:
                return
            assert len(batch.requests) + len(batch.answered) <= room
            for valid in batch.requests:
                assert valid.command == FLUSH or 0 < valid.length <= END - valid.offset
                assert not (valid.offset | valid.length) % 512
            kept = kept[batch.consumed :]
            if not batch.consumed:
                break
        assert parser.disconnecting or len(kept) < parser.needed_bytes <= 28 + PAYLOAD_BYTES_MAX


# replies


def reply(cookie: int, error: int = 0) -> bytes:
    return struct.pack(">IIQ", 0x67446698, error, cookie)


def test_replies_without_data_are_one_buffer() -> None:
    done = [Request(None, WRITE, 0, cookie, 0, 512) for cookie in range(5)]
    done[3].error = EIO
    buffers = pack_replies(done, memoryview(bytearray(5 * REPLY_BYTES)))
    assert [bytes(buffer) for buffer in buffers] == [b"".join(reply(c, EIO if c == 3 else 0) for c in range(5))]


def test_data_stand_behind_the_reply_of_their_read() -> None:
    write, read, failed = (
        Request(None, WRITE, 0, 1, 0, 4),
        Request(None, READ, 0, 2, 0, 4),
        Request(None, READ, 0, 3, 0, 4),
    )
    read.data, failed.error = memoryview(b"data"), EIO
    empty = Request(None, READ, 0, 4, 0, 0)
    buffers = pack_replies([write, read, failed, empty], memoryview(bytearray(4 * REPLY_BYTES)))
    assert b"".join(buffers) == reply(1) + reply(2) + b"data" + reply(3, EIO) + reply(4)
    assert len(buffers) == 3


def test_a_read_answered_with_less_than_was_asked_for_is_our_bug() -> None:
    read = Request(None, READ, 0, 2, 0, 4, memoryview(b"dat"))
    with pytest.raises(AssertionError, match="3 bytes"):
        pack_replies([read], memoryview(bytearray(REPLY_BYTES)))
