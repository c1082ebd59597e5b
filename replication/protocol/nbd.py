"""NBD as a server speaks it: the handshake as a machine, requests cut out of a buffer in place, replies packed.

Fixed newstyle handshake, simple replies. TLS, structured replies and metadata contexts are declined, as the protocol
lets a server do (doc/proto.md of github.com/NetworkBlockDevice/nbd). All numbers are big endian.

`Parser.parse` and `pack_replies` are run through once per request: they call nothing they can do without.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from replication.protocol.effects import Buffer
from replication.protocol.errors import MirrorError
from replication.protocol.requests import (
    DISCONNECT,
    EINVAL,
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

PAYLOAD_BYTES_MAX = 4 << 20
"""Largest WRITE, and what we name as the largest READ; zeroing and trimming carry no data and know no such limit."""
READ_BYTES_MAX = 32 << 20
"""Largest READ we answer. Clients which were never told a limit take this one for granted."""
REQUEST_BYTES = 28
REPLY_BYTES = 16

_PREFERRED_BLOCK = 4096
_OPTION_BYTES_MAX = 4096 + 4096
"""Names have at most 4096 bytes; beside the name there are only the numbers of the records asked for."""
_OPTIONS_MAX = 64

_IHAVEOPT = int.from_bytes(b"IHAVEOPT", "big")
_REQUEST_MAGIC, _REPLY_MAGIC = 0x25609513, 0x67446698
_request_header = struct.Struct(">IHHQQI")
_reply_header = struct.Struct(">IIQ")

_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
GREETING = b"NBDMAGIC" + b"IHAVEOPT" + struct.pack(">H", _FIXED_NEWSTYLE | _NO_ZEROES)
"""What the server says first."""

_KNOWN_FLAGS = {
    READ: FLAG_FUA,
    WRITE: FLAG_FUA,
    FLUSH: FLAG_FUA,
    TRIM: FLAG_FUA,
    WRITE_ZEROES: FLAG_FUA | FLAG_NO_HOLE,
}
"""Command -> its flags. FUA says nothing for a READ or FLUSH; proto.md wants it tolerated there."""


class ClientError(MirrorError):
    """A client said what NBD forbids. Its connection is closed; other clients notice nothing."""

    def __init__(self, fact: str) -> None:
        super().__init__("NBD client", fact)


@dataclass(frozen=True, slots=True)
class Export:
    """What is offered, under the empty name. Requests must be multiples of `minimum_block` bytes."""

    size_bytes: int
    minimum_block: int = 512
    description: str = ""

    def __post_init__(self) -> None:
        assert self.minimum_block in (1 << exponent for exponent in range(17)), self
        assert self.size_bytes % self.minimum_block == 0, self

    @property
    def transmission_flags(self) -> int:
        """Has flags, FLUSH, FUA, TRIM, WRITE_ZEROES; and MULTI_CONN, since a volume flushes for all its clients."""
        return 1 << 0 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8


class Phase(enum.Enum):
    FLAGS = "flags"
    """The client has not yet said its flags."""
    OPTIONS = "options"
    TRANSMISSION = "transmission"
    """What follows are requests: see Parser."""
    ENDED = "ended"
    """To be closed once the answer is sent."""


class _Option(enum.IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    INFO = 6
    GO = 7


class _Answer(enum.IntEnum):
    ACK = 1
    SERVER = 2
    INFO = 3
    UNSUPPORTED = 1 << 31 | 1
    INVALID = 1 << 31 | 3
    UNKNOWN = 1 << 31 | 6
    SHUTDOWN = 1 << 31 | 7


class _Record(enum.IntEnum):
    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Handshake:
    """One client's negotiation, after GREETING was sent to it. Feed `receive` while `phase` is FLAGS or OPTIONS."""

    def __init__(self, export: Export) -> None:
        self.export = export
        self.phase = Phase.FLAGS
        self.stopping = False
        """The device is going away: whoever wants it now is told so."""
        self._pads_with_zeroes = True
        self._options_seen = 0

    def receive(self, received: memoryview) -> tuple[int, bytes]:
        """Bytes consumed, and what to answer. Only whole options are consumed; they have at most 8208 bytes.

        Raises ClientError: close without an answer.
        """
        consumed, answers = 0, b""
        while self.phase in (Phase.FLAGS, Phase.OPTIONS):
            step = self._flags if self.phase is Phase.FLAGS else self._option
            count, answer = step(received[consumed:])
            if not count:
                break
            consumed += count
            answers += answer
        return consumed, answers

    def _flags(self, received: memoryview) -> tuple[int, bytes]:
        if len(received) < 4:
            return 0, b""
        flags = int.from_bytes(received[:4], "big")
        if flags not in (_FIXED_NEWSTYLE, _FIXED_NEWSTYLE | _NO_ZEROES):
            raise ClientError(f"asks for handshake flags {flags:#x}, not for fixed newstyle")
        self._pads_with_zeroes = not flags & _NO_ZEROES
        self.phase = Phase.OPTIONS
        return 4, b""

    def _option(self, received: memoryview) -> tuple[int, bytes]:
        if len(received) < 16:
            return 0, b""
        magic, option, length = struct.unpack_from(">QII", received)
        if magic != _IHAVEOPT:
            raise ClientError(f"an option starts with {magic:#x}, not with IHAVEOPT")
        if length > _OPTION_BYTES_MAX:
            raise ClientError(f"option {option} has {length} bytes of data; {_OPTION_BYTES_MAX} are the most")
        if len(received) < 16 + length:
            return 0, b""
        self._options_seen += 1
        if self._options_seen > _OPTIONS_MAX:
            raise ClientError(f"negotiates without end: {_OPTIONS_MAX} options are the most")
        answer = _OPTIONS.get(option)
        if answer is None:
            return 16 + length, _answer(option, _Answer.UNSUPPORTED, b"this server does without that option")
        return 16 + length, answer(self, option, bytes(received[16 : 16 + length]))

    def _export_name(self, _option: int, name: bytes) -> bytes:
        # nothing but a closed connection can say no here
        if self.stopping:
            raise ClientError("asks for a device that is being stopped")
        if name:
            raise ClientError(f"asks for export {name.decode(errors='replace')!r}; the only one has the empty name")
        self.phase = Phase.TRANSMISSION
        described = struct.pack(">QH", self.export.size_bytes, self.export.transmission_flags)
        return described + bytes(124) if self._pads_with_zeroes else described

    def _abort(self, option: int, _data: bytes) -> bytes:
        self.phase = Phase.ENDED
        return _answer(option, _Answer.ACK)

    def _list(self, option: int, data: bytes) -> bytes:
        if data:
            return _answer(option, _Answer.INVALID, b"LIST has no data")
        if self.stopping:
            return _answer(option, _Answer.SHUTDOWN, b"the device is being stopped")
        entry = bytes(4) + self.export.description.encode()  # an empty name, then text for people
        return _answer(option, _Answer.SERVER, entry) + _answer(option, _Answer.ACK)

    def _info(self, option: int, data: bytes) -> bytes:
        try:
            (name_length,) = struct.unpack_from(">I", data)
            name = data[4 : 4 + name_length]
            (count,) = struct.unpack_from(">H", data, 4 + name_length)
            asked = struct.unpack(f">{count}H", data[6 + name_length :])
        except struct.error:
            return _answer(option, _Answer.INVALID, b"the name and the records asked for do not fill the option")
        if self.stopping:
            return _answer(option, _Answer.SHUTDOWN, b"the device is being stopped")
        if name:
            return _answer(option, _Answer.UNKNOWN, b"the only export has the empty name")
        export = self.export
        records = [
            struct.pack(">HQH", _Record.EXPORT, export.size_bytes, export.transmission_flags),
            struct.pack(
                ">HIII",
                _Record.BLOCK_SIZE,
                export.minimum_block,
                max(_PREFERRED_BLOCK, export.minimum_block),
                PAYLOAD_BYTES_MAX,
            ),
        ]
        if _Record.NAME in asked:
            records.append(struct.pack(">H", _Record.NAME))
        if _Record.DESCRIPTION in asked and export.description:
            records.append(struct.pack(">H", _Record.DESCRIPTION) + export.description.encode())
        if option == _Option.GO:
            self.phase = Phase.TRANSMISSION
        return b"".join(_answer(option, _Answer.INFO, record) for record in records) + _answer(option, _Answer.ACK)


def _answer(option: int, answer: _Answer, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, option, answer, len(data)) + data


_OPTIONS: dict[int, Callable[[Handshake, int, bytes], bytes]] = {
    _Option.EXPORT_NAME: Handshake._export_name,
    _Option.ABORT: Handshake._abort,
    _Option.LIST: Handshake._list,
    _Option.INFO: Handshake._info,
    _Option.GO: Handshake._info,
}


@dataclass(slots=True)
class Batch:
    """What one call of `Parser.parse` cut out of the buffer."""

    consumed: int
    requests: list[Request]
    """Valid ones, for the volume."""
    answered: list[Request]
    """Those the volume never sees, with the error of their reply: 0 for a request of no length."""
    read_bytes: int
    """Sum of the lengths of the READs in `requests`."""


class Parser:
    """Cuts what one client sends into requests. Each gets `client` as its owner."""

    def __init__(self, client: object, export: Export) -> None:
        self.disconnecting = False
        """DISC was read: the client says nothing more, and is closed after its last reply."""
        self.stopping = False
        """The device is going away: new requests are answered ESHUTDOWN."""
        self.needed_bytes = REQUEST_BYTES
        """Bytes the first request not yet consumed has, as far as is known: the buffer must offer that much room."""
        self._client = client
        self._size = export.size_bytes
        self._misaligned = export.minimum_block - 1
        self._oversized: Request | None = None
        self._oversized_left = 0

    def sees_disconnect(self, received: memoryview) -> bool:
        """Whether the next thing this client says is that it leaves."""
        if self._oversized or len(received) < REQUEST_BYTES:
            return False
        magic, _, command, *_ = _request_header.unpack_from(received)
        return bool(magic == _REQUEST_MAGIC and command == DISCONNECT)

    def parse(self, received: memoryview, room: int, read_room_bytes: int) -> Batch:
        """Cut out all complete requests, but at most `room`, and no more after READs of `read_room_bytes` or more.

        `data` of a WRITE is a view into `received`. Raises ClientError when `received` begins with no request: what
        stands in front of such bytes is returned first, and the next call raises.
        """
        unpack, client, size, misaligned = _request_header.unpack_from, self._client, self._size, self._misaligned
        serving = not self.stopping
        requests: list[Request] = []
        answered: list[Request] = []
        read_bytes = 0
        end = len(received)
        position = self._swallow(0, end, answered) if self._oversized else 0
        self.needed_bytes = REQUEST_BYTES
        for _ in range(0 if self.disconnecting else room - len(answered)):
            body = position + REQUEST_BYTES
            if body > end:
                break
            magic, flags, command, cookie, offset, length = unpack(received, position)
            if magic != _REQUEST_MAGIC:
                if position:
                    break
                raise ClientError(f"a request starts with {magic:#x}, not with {_REQUEST_MAGIC:#x}")
            if command == WRITE:
                after = body + length
                if length > PAYLOAD_BYTES_MAX:
                    self._oversized = Request(client, command, flags, cookie, offset, length)
                    self._oversized_left = length
                    position = self._swallow(body, end, answered)
                    continue
                if after > end:
                    self.needed_bytes = REQUEST_BYTES + length
                    break
                request = Request(client, command, flags, cookie, offset, length, received[body:after])
                position = after
                if serving and flags <= FLAG_FUA and 0 < length <= size - offset and not (offset | length) & misaligned:
                    requests.append(request)
                    continue
            else:
                position = body
                if command == DISCONNECT:
                    self.disconnecting = True
                    break
                request = Request(client, command, flags, cookie, offset, length)
            if self._is_valid(request):
                requests.append(request)
                if command == READ:
                    read_bytes += length
                    if read_bytes >= read_room_bytes:
                        break
            else:
                answered.append(request)
        return Batch(position, requests, answered, read_bytes)

    def _swallow(self, position: int, end: int, answered: list[Request]) -> int:
        """Pass over the data of a WRITE that is too long. It is answered behind them: before, no client expects it."""
        assert self._oversized is not None
        step = min(self._oversized_left, end - position)
        self._oversized_left -= step
        if not self._oversized_left:
            self._oversized.error = ESHUTDOWN if self.stopping else EINVAL
            answered.append(self._oversized)
            self._oversized = None
        return position + step

    def _is_valid(self, request: Request) -> bool:
        """Whether the volume shall see it; if not, its error is set."""
        command, offset, length = request.command, request.offset, request.length
        known_flags = _KNOWN_FLAGS.get(command)
        if self.stopping:
            request.error = ESHUTDOWN
        elif known_flags is None or request.flags & ~known_flags:
            request.error = EINVAL
        elif command == FLUSH:
            if not offset and not length:
                return True
            request.error = EINVAL
        elif (offset | length) & self._misaligned or (command == READ and length > READ_BYTES_MAX):
            request.error = EINVAL
        elif offset + length > self._size:
            request.error = ENOSPC if command in (WRITE, WRITE_ZEROES) else EINVAL
        else:
            return length > 0
        return False


def pack_replies(requests: Iterable[Request], heads: memoryview) -> list[Buffer]:
    """Buffers to send, in this order. `heads` (REPLY_BYTES a request) is written to, and some of them are views of it.

    A successful READ must have its bytes in `data`.
    """
    pack = _reply_header.pack_into
    buffers: list[Buffer] = []
    start = end = 0
    for request in requests:
        error = request.error
        pack(heads, end, _REPLY_MAGIC, error, request.cookie)
        end += REPLY_BYTES
        if request.command == READ and not error and request.length:
            data = request.data
            assert data is not None, f"{request} is answered without data"
            assert len(data) == request.length, f"{request} is answered with {len(data)} bytes"
            buffers += (heads[start:end], data)
            start = end
    if start < end:
        buffers.append(heads[start:end])
    return buffers
