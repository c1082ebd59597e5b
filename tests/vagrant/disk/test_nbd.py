"""The codec: the answers the protocol asks for, the same whether bytes come whole or one by one, and no crash ever."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vagrant.namespaces.disk import nbd

SIZE = 1 << 20
FIXED = struct.pack(">I", 1)
FIXED_NO_ZEROES = struct.pack(">I", 3)


def option(number: int, data: bytes = b"") -> bytes:
    return struct.pack(">QII", nbd.OPTION_MAGIC, number, len(data)) + data


def export_option(number: int, name: bytes = b"", records: tuple[int, ...] = ()) -> bytes:
    length = struct.pack(">I", len(name))
    return option(number, length + name + struct.pack(f">H{len(records)}H", len(records), *records))


def replies(answer: bytes) -> list[tuple[int, int, bytes]]:
    """(option, reply type, data) of each option reply."""
    found = []
    while answer:
        magic, number, kind, length = struct.unpack_from(">QIII", answer)
        assert magic == nbd.OPTION_REPLY_MAGIC
        found.append((number, kind, answer[20 : 20 + length]))
        answer = answer[20 + length :]
    return found


def negotiate(data: bytes, piece_bytes: int) -> tuple[bytes, nbd.Handshake]:
    handshake = nbd.Handshake(SIZE)
    answer = b""
    for start in range(0, len(data), piece_bytes):
        if handshake.stage is not nbd.Stage.NEGOTIATING:
            handshake.rest += data[start:]
            break
        answer += handshake.receive(data[start : start + piece_bytes])
    return answer, handshake


def request(command: int, offset: int = 0, length: int = 0, flags: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">IHHQQI", nbd.REQUEST_MAGIC, flags, command, 99, offset, length) + payload


def parsed(data: bytes) -> nbd.Request:
    found = nbd.next_request(memoryview(data))
    assert isinstance(found, nbd.Request)
    return found


def test_the_greeting_offers_fixed_newstyle() -> None:
    assert nbd.Handshake(SIZE).greeting() == b"NBDMAGICIHAVEOPT\x00\x03"


@pytest.mark.parametrize("piece_bytes", [1, 7, 10_000])
def test_go_describes_the_disk_and_hands_over_what_came_behind_it(piece_bytes: int) -> None:
    answer, handshake = negotiate(FIXED_NO_ZEROES + export_option(7, records=(3,)) + b"tail", piece_bytes)
    export, sizes, ack = replies(answer)
    assert export[2] == struct.pack(">HQH", 0, SIZE, 0b1_0110_1101)
    assert sizes[2] == struct.pack(">HIII", 3, 1, 4096, 32 << 20)
    assert ack == (7, nbd.OptionReply.ACK, b"")
    assert handshake.stage is nbd.Stage.TRANSMITTING
    assert handshake.rest == b"tail"


def test_info_describes_the_disk_and_stays_in_the_negotiation() -> None:
    answer, handshake = negotiate(FIXED + export_option(6), 100)
    assert [kind for _, kind, _ in replies(answer)] == [3, 3, 1]
    assert handshake.stage is nbd.Stage.NEGOTIATING


@pytest.mark.parametrize(("flags", "zeroes"), [(FIXED, 124), (FIXED_NO_ZEROES, 0)])
def test_the_old_export_name_is_answered_with_the_zeroes_that_were_agreed(flags: bytes, zeroes: int) -> None:
    answer, handshake = negotiate(flags + option(1), 3)
    assert answer == struct.pack(">QH", SIZE, nbd.OFFERED) + bytes(zeroes)
    assert handshake.stage is nbd.Stage.TRANSMITTING


def test_a_list_names_the_default_export() -> None:
    answer, _ = negotiate(FIXED + option(3), 100)
    assert replies(answer) == [(3, 2, bytes(4)), (3, 1, b"")]


def test_abort_is_acknowledged_and_ends_the_conversation() -> None:
    answer, handshake = negotiate(FIXED + option(2), 100)
    assert replies(answer) == [(2, 1, b"")]
    assert handshake.stage is nbd.Stage.CLOSED


@pytest.mark.parametrize("number", [5, 8, 9, 10, 11, 4711])
def test_an_option_we_lack_is_declined_and_the_next_one_understood(number: int) -> None:
    answer, _ = negotiate(FIXED + option(number, b"whatever") + option(3), 5)
    assert [(asked, kind) for asked, kind, _ in replies(answer)] == [(number, 0x80000001), (3, 2), (3, 1)]


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (export_option(7, b"other"), nbd.OptionReply.ERR_UNKNOWN),
        (option(7, b"\0\0\0"), nbd.OptionReply.ERR_INVALID),
        (option(7, struct.pack(">IH", 50, 0)), nbd.OptionReply.ERR_INVALID),
        (option(6, struct.pack(">IH", 0, 2) + b"\0\3"), nbd.OptionReply.ERR_INVALID),
        (option(3, b"x"), nbd.OptionReply.ERR_INVALID),
    ],
)
def test_a_wrong_option_is_refused_and_the_negotiation_goes_on(sent: bytes, kind: nbd.OptionReply) -> None:
    answer, handshake = negotiate(FIXED + sent, 100)
    assert [found for _, found, _ in replies(answer)] == [kind]
    assert handshake.stage is nbd.Stage.NEGOTIATING


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack(">I", 0),  # not fixed newstyle
        struct.pack(">I", 7),  # a flag that nobody defined
        FIXED + b"not the magic at all",
        FIXED + struct.pack(">QII", nbd.OPTION_MAGIC, 7, 1 << 30),
        FIXED + option(1, b"other"),
        FIXED + option(4711) * (nbd.OPTION_COUNT_MAX + 1),
    ],
)
def test_a_client_that_breaks_the_protocol_is_to_be_dropped(sent: bytes) -> None:
    with pytest.raises(nbd.PeerError):
        negotiate(sent, 100)


@given(st.binary(max_size=200), st.integers(1, 50))
@settings(max_examples=300, deadline=None)
def test_garbage_in_the_negotiation_is_answered_or_dropped(garbage: bytes, piece_bytes: int) -> None:
    for start in (b"", FIXED, FIXED + struct.pack(">Q", nbd.OPTION_MAGIC)):
        try:
            negotiate(start + garbage, piece_bytes)
        except nbd.PeerError:
            continue


@given(
    st.lists(
        st.tuples(st.integers(0, 7), st.integers(0, 2 * SIZE), st.integers(0, 3), st.binary(max_size=40)), max_size=5
    )
)
@settings(max_examples=200, deadline=None)
def test_requests_are_the_same_whole_and_byte_by_byte(wanted: list[tuple[int, int, int, bytes]]) -> None:
    stream = b""
    for command, offset, flags, payload in wanted:
        carried = payload if command == nbd.Command.WRITE else b""
        stream += request(command, offset, len(payload), flags, carried)
    seen = []
    received = b""
    for byte in stream:
        received += bytes([byte])
        found = nbd.next_request(memoryview(received))
        if isinstance(found, int):
            assert found > len(received)
            continue
        assert len(received) == nbd.REQUEST.size + len(found.payload)
        seen.append((found.command, found.offset_bytes, found.flags, found.length_bytes, bytes(found.payload)))
        received = b""
    assert seen == [
        (command, offset, flags, len(payload), payload if command == nbd.Command.WRITE else b"")
        for command, offset, flags, payload in wanted
    ]
    assert received == b""


@given(st.binary(max_size=100))
@settings(max_examples=300, deadline=None)
def test_garbage_in_the_transmission_is_a_request_or_a_broken_protocol(garbage: bytes) -> None:
    for data in (garbage, struct.pack(">I", nbd.REQUEST_MAGIC) + garbage):
        try:
            found = nbd.next_request(memoryview(data))
        except nbd.PeerError:
            continue
        if isinstance(found, nbd.Request):
            nbd.refusal(found, SIZE)


def test_a_write_above_the_largest_payload_is_to_be_dropped_before_it_arrives() -> None:
    with pytest.raises(nbd.PeerError):
        nbd.next_request(memoryview(request(nbd.Command.WRITE, 0, (32 << 20) + 1)))


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (request(nbd.Command.READ, 0, SIZE), None),
        (request(nbd.Command.READ, 0, SIZE, nbd.CommandFlag.FUA), None),
        (request(nbd.Command.READ, 1, SIZE), nbd.ErrorNumber.EINVAL),
        (request(nbd.Command.READ, 0, (32 << 20) + 1), nbd.ErrorNumber.EOVERFLOW),
        (request(nbd.Command.WRITE, SIZE - 1, 2, payload=b"ab"), nbd.ErrorNumber.ENOSPC),
        (request(nbd.Command.WRITE_ZEROES, SIZE, 1), nbd.ErrorNumber.ENOSPC),
        (request(nbd.Command.TRIM, SIZE, 1), nbd.ErrorNumber.EINVAL),
        (request(nbd.Command.TRIM, 0, SIZE), None),
        (request(nbd.Command.FLUSH), None),
        (request(nbd.Command.FLUSH, 0, 1), nbd.ErrorNumber.EINVAL),
        (request(nbd.Command.WRITE_ZEROES, 0, SIZE, 2), None),
        (request(nbd.Command.WRITE_ZEROES, 0, SIZE, 16), nbd.ErrorNumber.EINVAL),
        (request(5), nbd.ErrorNumber.EINVAL),
        (request(7), nbd.ErrorNumber.EINVAL),
        (request(1000), nbd.ErrorNumber.EINVAL),
    ],
)
def test_a_disk_refuses_what_it_cannot_do_and_nothing_else(sent: bytes, error: nbd.ErrorNumber | None) -> None:
    assert nbd.refusal(parsed(sent), SIZE) is error


def test_a_reply_carries_magic_error_and_cookie() -> None:
    assert nbd.reply(77, 5) == struct.pack(">IIQ", 0x67446698, 5, 77)
