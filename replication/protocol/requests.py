"""What a client asks of the device. Numbers are NBD's, since they arrive so."""

from __future__ import annotations

READ, WRITE, DISCONNECT, FLUSH, TRIM, CACHE, WRITE_ZEROES = 0, 1, 2, 3, 4, 5, 6
FLAG_FUA, FLAG_NO_HOLE = 1, 2

EIO, EINVAL, ENOSPC, ESHUTDOWN = 5, 22, 28, 108
"""NBD's error numbers."""


class Request:
    """One request of one client, from its arrival to its reply. `data` is a view into the client's buffer.

    Whoever made it must leave that buffer alone until the volume accepts more (`Volume.accepting`).
    """

    __slots__ = ("client", "command", "cookie", "data", "error", "flags", "length", "offset", "pending")

    def __init__(
        self,
        client: object,
        command: int,
        flags: int,
        cookie: int,
        offset: int,
        length: int,
        data: memoryview | None = None,
    ) -> None:
        self.client = client
        self.command = command
        self.flags = flags
        self.cookie = cookie
        self.offset = offset
        self.length = length
        self.data = data
        self.error = 0
        """NBD error number of the reply; 0 is success."""
        self.pending = 0
        """Parts not yet done on both sides; the volume's business."""

    def __repr__(self) -> str:
        return f"Request({self.command}, {self.flags}, {self.cookie}, {self.offset}, {self.length})"
