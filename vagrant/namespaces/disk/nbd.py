"""The NBD protocol as one side of a conversation: bytes in, requests and answers out. No socket here.

Fixed newstyle handshake and simple replies; structured replies, TLS and metadata contexts are declined as the protocol
allows. Source: the NBD protocol document of the reference implementation (proto.md).
"""

from enum import Enum, IntEnum, IntFlag
from struct import Struct
from typing import NamedTuple

GREETING_MAGIC = 0x4E42444D41474943
OPTION_MAGIC = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
REPLY_MAGIC = 0x67446698

GREETING = Struct(">QQH")  # magic, option magic, handshake flags
CLIENT_FLAGS = Struct(">I")
OPTION = Struct(">QII")  # magic, option, length of data
OPTION_REPLY = Struct(">QIII")  # magic, option, reply type, length of data
INFO_EXPORT = Struct(">HQH")  # record type, size, transmission flags
INFO_BLOCK_SIZE = Struct(">HIII")  # record type, minimum, preferred, maximum payload
EXPORT_NAME_REPLY = Struct(">QH")  # size, transmission flags
REQUEST = Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
REPLY = Struct(">IIQ")  # magic, error, cookie

OPTION_BYTES_MAX = 8192
"""Longest option data we take: a name of at most 4096 bytes and a list of records."""
OPTION_COUNT_MAX = 64
PAYLOAD_BYTES_MAX = 32 << 20
PREFERRED_BYTES = 4096


class PeerError(Exception):
    """The client broke the protocol; its connection has to be dropped."""


class HandshakeFlag(IntFlag):
    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class Option(IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    INFO = 6
    GO = 7


class OptionReply(IntEnum):
    ACK = 1
    SERVER = 2
    INFO = 3
    ERR_UNSUPPORTED = 0x80000001
    ERR_INVALID = 0x80000003
    ERR_UNKNOWN = 0x80000006
    ERR_TOO_BIG = 0x80000009


class Info(IntEnum):
    EXPORT = 0
    BLOCK_SIZE = 3


class Transmission(IntFlag):
    HAS_FLAGS = 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    CAN_MULTI_CONN = 1 << 8  # one process answers all connections out of one cache


class Command(IntEnum):
    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6


class CommandFlag(IntFlag):
    FUA = 1
    NO_HOLE = 2


class ErrorNumber(IntEnum):
    """Errors as they travel; the numbers are fixed by the protocol and equal Linux's."""

    EIO = 5
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75


OFFERED = Transmission(sum(Transmission))

_FLAGS_ALLOWED: dict[int, int] = {
    Command.READ: 1,
    Command.WRITE: 1,
    Command.FLUSH: 1,
    Command.TRIM: 1,
    Command.WRITE_ZEROES: 3,
}  # FUA is tolerated where it says nothing, as clients send it there


class Stage(Enum):
    """Where a conversation stands."""

    NEGOTIATING = "negotiating"
    TRANSMITTING = "transmitting"
    CLOSED = "closed"


class Handshake:
    """The negotiation of one connection for the one export, whose name is empty (the default export).

    `stage` tells how it ended; what the client sent beyond it is in `rest`.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.stage = Stage.NEGOTIATING
        self.rest = b""
        self._received = bytearray()
        self._flags: HandshakeFlag | None = None
        self._options = 0

    def greeting(self) -> bytes:
        """What the server says first."""
        return GREETING.pack(GREETING_MAGIC, OPTION_MAGIC, HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)

    def receive(self, data: bytes) -> bytes:
        """Take bytes of the client, in pieces of any size; return what to answer.

        Raises PeerError for a wrong magic, unknown client flags, or options without end; close then.
        """
        self._received += data
        answer = bytearray()
        while self.stage is Stage.NEGOTIATING:
            if self._flags is None:
                if len(self._received) < CLIENT_FLAGS.size:
                    break
                self._take_client_flags()
                continue
            if len(self._received) < OPTION.size:
                break
            magic, option, length_bytes = OPTION.unpack_from(self._received)
            if magic != OPTION_MAGIC:
                raise PeerError(f"option begins with {magic:#x} instead of {OPTION_MAGIC:#x}")
            if length_bytes > OPTION_BYTES_MAX:
                raise PeerError(f"option {option} announces {length_bytes} bytes, more than {OPTION_BYTES_MAX}")
            if len(self._received) < OPTION.size + length_bytes:
                break
            value = bytes(self._received[OPTION.size : OPTION.size + length_bytes])
            del self._received[: OPTION.size + length_bytes]
            self._options += 1
            if self._options > OPTION_COUNT_MAX:
                raise PeerError(f"more than {OPTION_COUNT_MAX} options without an end of the negotiation")
            answer += self._answer(option, value)
        if self.stage is not Stage.NEGOTIATING:
            self.rest = bytes(self._received)
            self._received.clear()
        return bytes(answer)

    def _take_client_flags(self) -> None:
        (flags,) = CLIENT_FLAGS.unpack_from(self._received)
        del self._received[: CLIENT_FLAGS.size]
        if flags > sum(HandshakeFlag):
            raise PeerError(f"unknown client flags {flags:#x}")
        if not flags & HandshakeFlag.FIXED_NEWSTYLE:
            raise PeerError("the client does not speak fixed newstyle")
        self._flags = HandshakeFlag(flags)

    def _answer(self, option: int, value: bytes) -> bytes:
        if option == Option.EXPORT_NAME:
            if value:
                raise PeerError(f"unknown export {value!r}")  # this option has no way to answer an error
            self.stage = Stage.TRANSMITTING
            zeroes = b"" if self._flags is not None and self._flags & HandshakeFlag.NO_ZEROES else bytes(124)
            return EXPORT_NAME_REPLY.pack(self.size_bytes, OFFERED) + zeroes
        if option == Option.ABORT:
            self.stage = Stage.CLOSED
            return _option_reply(option, OptionReply.ACK)
        if option == Option.LIST:
            if value:
                return _option_reply(option, OptionReply.ERR_INVALID, b"a list request carries no data")
            return _option_reply(option, OptionReply.SERVER, bytes(4)) + _option_reply(option, OptionReply.ACK)
        if option in (Option.INFO, Option.GO):
            return self._describe(option, value)
        return _option_reply(option, OptionReply.ERR_UNSUPPORTED)

    def _describe(self, option: int, value: bytes) -> bytes:
        name = _export_name(value)
        if name is None:
            return _option_reply(option, OptionReply.ERR_INVALID, b"lengths inside the option do not add up")
        if name:
            return _option_reply(option, OptionReply.ERR_UNKNOWN, b"this disk has one export, with the empty name")
        if option == Option.GO:
            self.stage = Stage.TRANSMITTING
        sizes = INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, 1, PREFERRED_BYTES, PAYLOAD_BYTES_MAX)
        return (
            _option_reply(option, OptionReply.INFO, INFO_EXPORT.pack(Info.EXPORT, self.size_bytes, OFFERED))
            + _option_reply(option, OptionReply.INFO, sizes)
            + _option_reply(option, OptionReply.ACK)
        )


def _option_reply(option: int, kind: OptionReply, value: bytes = b"") -> bytes:
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(value)) + value


def _export_name(value: bytes) -> bytes | None:
    """The name in the data of INFO or GO, or None if its lengths do not add up."""
    if len(value) < 6:
        return None
    length_bytes = int.from_bytes(value[:4], "big")
    if len(value) < 6 + length_bytes:
        return None
    record_count = int.from_bytes(value[4 + length_bytes : 6 + length_bytes], "big")
    if len(value) != 6 + length_bytes + 2 * record_count:
        return None
    return value[4 : 4 + length_bytes]


class Request(NamedTuple):
    """One request. `payload` is a window into the receive buffer: copy it to keep it."""

    command: int
    flags: int
    cookie: int
    offset_bytes: int
    length_bytes: int
    payload: memoryview


_NO_PAYLOAD = memoryview(b"")


def next_request(received: memoryview) -> Request | int:
    """The first request in `received`, or the number of bytes that have to be there before it is complete.

    The request takes REQUEST.size + len(payload) bytes. Raises PeerError for a wrong magic or an oversized write.
    """
    if len(received) < REQUEST.size:
        return REQUEST.size
    length_bytes: int
    magic, flags, command, cookie, offset_bytes, length_bytes = REQUEST.unpack_from(received)
    if magic != REQUEST_MAGIC:
        raise PeerError(f"request begins with {magic:#x} instead of {REQUEST_MAGIC:#x}")
    if command != Command.WRITE:
        return Request(command, flags, cookie, offset_bytes, length_bytes, _NO_PAYLOAD)
    if length_bytes > PAYLOAD_BYTES_MAX:
        raise PeerError(f"write of {length_bytes} bytes, more than {PAYLOAD_BYTES_MAX}")
    end = REQUEST.size + length_bytes
    if len(received) < end:
        return end
    return Request(command, flags, cookie, offset_bytes, length_bytes, received[REQUEST.size : end])


def refusal(request: Request, size_bytes: int) -> ErrorNumber | None:
    """Why a disk of this size must not carry the request out, or None."""
    allowed = _FLAGS_ALLOWED.get(request.command)
    if allowed is None or request.flags & ~allowed:
        return ErrorNumber.EINVAL
    if request.command == Command.FLUSH:
        return ErrorNumber.EINVAL if request.offset_bytes or request.length_bytes else None
    if request.command == Command.READ and request.length_bytes > PAYLOAD_BYTES_MAX:
        return ErrorNumber.EOVERFLOW
    if request.offset_bytes + request.length_bytes > size_bytes:
        writes = request.command in (Command.WRITE, Command.WRITE_ZEROES)
        return ErrorNumber.ENOSPC if writes else ErrorNumber.EINVAL
    return None


def reply(cookie: int, error: int = 0) -> bytes:
    """Head of a simple reply; the data of a successful read follow it."""
    return REPLY.pack(REPLY_MAGIC, error, cookie)
