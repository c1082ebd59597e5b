"""The control socket of mirrord: request and reply, client, and the lock that says who is the daemon.

    /run/mirrorha/mirror/<resource>/control     unix socket for root or the daemon's user; the directory is mode 0700
    /run/mirrorha/mirror/<resource>/pid         locked as long as the daemon lives

One JSON object a line, both ways:

    {"verb": "primary", "arguments": {"force": false}, "timeout_s": 10}
    {"ok": {}}        {"error": {"subject": "mirror r0", "fact": "…", "remedy": "…", "code": 17}}
    {"verb": "events", …}   is answered by lines {"event": {"status": {…}}} until one side closes

A client keeps its side open until the answer: closing it withdraws a verb that has not begun. The server is in
control_server.py.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import json
import math
import os
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from replication.errors import ConfigError, DiskFailure, MirrorError, Refusal, Unavailable

RUNTIME_DIRECTORY = Path("/run/mirrorha/mirror")
STATE_DIRECTORY = Path("/var/lib/mirrorha/mirror")
REQUEST_LIMIT_BYTES = 64 * 1024
REPLY_LIMIT_BYTES = 16 * 1024 * 1024
BACKLOG_LIMIT_BYTES = 1024 * 1024
"""A listener to events that is further behind than this is dropped: it would learn of a takeover too late."""
CLIENT_LIMIT = 64
IDLE_LIMIT_S = 10.0
"""A client that neither completes a request nor takes its answer for this long is dropped."""
LONGEST_TIMEOUT_S = 86400.0
GRACE_S = 0.5
"""How much longer than the deadline a client waits, so that the daemon's own explanation arrives."""

Status = dict[str, Any]
"""One resource as `mirroradm status --json` prints it: DRBD's keys, and ours below "mirror"."""


class Verb(enum.StrEnum):
    """What can be asked of a daemon, and the arguments that go with it."""

    STATUS = "status"
    EVENTS = "events"
    PRIMARY = "primary"
    """`force`: bool, make a disk that is not up to date the truth."""
    SECONDARY = "secondary"
    """`force`: bool, even while somebody holds the device open."""
    CONNECT = "connect"
    """`discard_my_data`: bool"""
    DISCONNECT = "disconnect"
    INVALIDATE = "invalidate"
    INVALIDATE_REMOTE = "invalidate-remote"
    OUTDATE = "outdate"
    PERMIT = "permit"
    """`accept_loss`: name of the host that may lack data and be promoted nevertheless."""
    NEW_CURRENT_UUID = "new-current-uuid"
    """`clear_bitmap`: bool, both disks are declared equal."""
    ATTACH = "attach"
    DETACH = "detach"
    DOWN = "down"
    """The daemon answers and then ends. `force`: bool, as for secondary."""


class NotRunning(Unavailable):
    """There is no daemon."""

    def __init__(self, resource: str) -> None:
        super().__init__(f"mirror {resource}", "its mirrord does not run", f"mirroradm up {resource}")


class Exit(enum.IntEnum):
    """Exit codes of drbdadm and drbdsetup; the `code` of an error on the wire."""

    DONE = 0
    USAGE = 1
    """Unknown verb, resource not defined."""
    TIME_OVER = 5
    """wait-sync, wait-connect: not reached in time."""
    REFUSED = 10
    """Configuration not valid, resource not up."""
    STATE_REFUSED = 11
    NO_DISK = 16
    NO_GOOD_DATA = 17
    """No UpToDate data in reach."""
    NO_ANSWER = 20
    """The daemon cannot be started or asked, or did not answer in time."""


def exit_code(error: MirrorError) -> int:
    match error:
        case Refusal():
            return error.code
        case NotRunning() | ConfigError():
            return Exit.REFUSED
        case Unavailable():
            return Exit.NO_ANSWER
        case DiskFailure():
            return Exit.NO_DISK
    return Exit.STATE_REFUSED


@dataclass(frozen=True, slots=True)
class Request:
    verb: Verb
    arguments: dict[str, Any] = field(default_factory=dict)
    timeout_s: float = 10.0

    def encode(self) -> bytes:
        row = {"verb": self.verb.value, "arguments": self.arguments, "timeout_s": self.timeout_s}
        return json.dumps(row, allow_nan=False).encode() + b"\n"

    @staticmethod
    def decode(line: bytes) -> Request:
        """Raises Unavailable for whatever is not a request."""
        try:
            row = json.loads(line)
            verb = Verb(row["verb"])
            arguments = row.get("arguments", {})
            timeout_s = float(row.get("timeout_s", 10.0))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise Unavailable("control socket", f"not a request: {error!r:.200}", f"verbs: {', '.join(Verb)}") from None
        if not isinstance(arguments, dict) or not math.isfinite(timeout_s) or timeout_s <= 0:
            raise Unavailable("control socket", "arguments must be an object and timeout_s a positive number")
        return Request(verb, arguments, min(timeout_s, LONGEST_TIMEOUT_S))


def encode_reply(result: dict[str, Any] | MirrorError) -> bytes:
    if not isinstance(result, MirrorError):
        return json.dumps({"ok": result}).encode() + b"\n"
    error = {"subject": result.subject, "fact": result.fact, "remedy": result.remedy}
    return json.dumps({"error": {**error, "code": exit_code(result)}}).encode() + b"\n"


def decode_reply(line: bytes) -> dict[str, Any]:
    """What stands behind "ok" or "event". Raises the error that stands there instead."""
    try:
        row = json.loads(line)
        if "error" not in row:
            return dict(row["ok"] if "ok" in row else row["event"])
        error = row["error"]
        subject, fact, remedy = str(error["subject"]), str(error["fact"]), str(error["remedy"])
        code = int(error["code"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Unavailable("control socket", f"not an answer of a mirrord: {line[:80]!r} ({error!r})") from None
    raise Unavailable(subject, fact, remedy) if code == Exit.NO_ANSWER else Refusal(subject, fact, remedy, code=code)


# who is the daemon ---------------------------------------------------------------------------------------------------


def check_name(resource: str) -> str:
    """Raises Refusal for a name that cannot be one directory below the runtime directory."""
    if resource in ("", ".", "..", "all") or len(resource) > 128 or "/" in resource or not resource.isprintable():
        raise Refusal(
            f"mirror {resource!r:.140}", "that is no name of a resource", "see: mirroradm sh-resources", code=1
        )
    return resource


def control_path(resource: str, runtime_directory: Path = RUNTIME_DIRECTORY) -> Path:
    return runtime_directory / check_name(resource) / "control"


def pid_path(resource: str, runtime_directory: Path = RUNTIME_DIRECTORY) -> Path:
    return runtime_directory / check_name(resource) / "pid"


def make_private(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory.chmod(0o700)


def claim(resource: str, runtime_directory: Path = RUNTIME_DIRECTORY) -> int:
    """Become the daemon of this resource: the file descriptor returned is kept open until the end, and never inherited.

    It is a POSIX record lock: the kernel names its owner to whoever asks, drops it at the owner's death, however that
    comes, and children do not hold it. The daemon must not open its pid file a second time: closing that would unlock.
    Raises Refusal when another process is the daemon.
    """
    path = pid_path(resource, runtime_directory)
    make_private(path.parent)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        pid = daemon_pid(resource, runtime_directory)
        raise Refusal(f"mirror {resource}", f"its mirrord runs already (process {pid})", code=Exit.REFUSED) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def daemon_pid(resource: str, runtime_directory: Path = RUNTIME_DIRECTORY) -> int | None:
    """The process that is the daemon now, by its lock; never a number left over from a dead one."""
    layout = "hhqqi4x"  # struct flock of a 64-bit Linux
    try:
        descriptor = os.open(pid_path(resource, runtime_directory), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        # F_GETLK fills in the lock that stands in the way of the one described. A read lock, as the file is open so.
        asked = struct.pack(layout, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(layout, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    finally:
        os.close(descriptor)
    return None if kind == fcntl.F_UNLCK else pid


def running(runtime_directory: Path = RUNTIME_DIRECTORY) -> list[str]:
    """Names of the resources that have a daemon now, sorted."""
    try:
        names = sorted(entry.name for entry in runtime_directory.iterdir() if entry.is_dir())
    except FileNotFoundError:
        return []
    return [name for name in names if daemon_pid(name, runtime_directory) is not None]


@contextlib.contextmanager
def address_of(path: Path) -> Iterator[str]:
    """A unix socket's address holds 107 bytes; a longer path is reached through its directory's descriptor."""
    if len(os.fsencode(path)) <= 107:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


# client --------------------------------------------------------------------------------------------------------------


class EventStream:
    """What a daemon tells of itself, from now on. The first event is the present status."""

    def __init__(self, connection: socket.socket, resource: str) -> None:
        self._connection = connection
        self._resource = resource
        self._buffer = bytearray()

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._connection.fileno()

    def close(self) -> None:
        self._connection.close()

    def next(self, timeout_s: float) -> dict[str, Any] | None:
        """The next event; None when there was none in time. Raises NotRunning when the daemon has gone."""
        line = read_line(self._connection, self._buffer, time.monotonic() + timeout_s)
        if line == b"":
            raise NotRunning(self._resource)
        return None if line is None else decode_reply(line)


class MirrorClient:
    """Asks the daemon of one resource. Every method connects anew: a daemon may have been replaced meanwhile."""

    def __init__(self, resource: str, runtime_directory: Path = RUNTIME_DIRECTORY) -> None:
        self.resource = check_name(resource)
        self.runtime_directory = runtime_directory

    def ask(self, verb: Verb, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        """The daemon's answer.

        Raises NotRunning without a daemon, Unavailable when it does not answer in time, Refusal (with the daemon's
        reason, remedy and code) when it says no.
        """
        deadline = time.monotonic() + timeout_s
        with self._connect(deadline) as connection:
            self._send(connection, Request(verb, arguments, max(deadline - time.monotonic(), 0.01)))
            line = read_line(connection, bytearray(), deadline + GRACE_S)
        if line is None:
            raise self._silent(f"does not answer within {timeout_s:.1f} s")
        if line == b"":
            raise self._silent("ended before it answered") if self._pid() else NotRunning(self.resource)
        return decode_reply(line)

    def events(self, timeout_s: float = 5.0) -> EventStream:
        """Raises as `ask` does."""
        connection = self._connect(time.monotonic() + timeout_s)
        try:
            self._send(connection, Request(Verb.EVENTS))
        except MirrorError:
            connection.close()
            raise
        return EventStream(connection, self.resource)

    def _pid(self) -> int | None:
        return daemon_pid(self.resource, self.runtime_directory)

    def _silent(self, fact: str) -> Unavailable:
        remedy = f"try mirroradm down --force {self.resource}, then mirroradm up {self.resource}"
        return Unavailable(f"mirror {self.resource}", f"its mirrord (process {self._pid()}) {fact}", remedy)

    def _connect(self, deadline: float) -> socket.socket:
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                with address_of(control_path(self.resource, self.runtime_directory)) as address:
                    connection.settimeout(max(deadline - time.monotonic(), 0.01))
                    connection.connect(address)
                return connection
            except PermissionError:
                connection.close()
                raise Unavailable(f"mirror {self.resource}", "only root may ask its mirrord", "use sudo") from None
            except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
                connection.close()
                if self._pid() is None:
                    raise NotRunning(self.resource) from None
                fact = "starts or ends just now: it has no control socket"
            except (TimeoutError, BlockingIOError):  # the queue of the socket is full
                connection.close()
                fact = "does not accept a connection"
            if time.monotonic() >= deadline:
                raise self._silent(fact)
            time.sleep(0.02)

    def _send(self, connection: socket.socket, request: Request) -> None:
        data = request.encode()
        if len(data) > REQUEST_LIMIT_BYTES:
            raise Refusal(f"mirror {self.resource}", f"a request of {len(data)} bytes is too long", code=Exit.USAGE)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # why, the answer says
            connection.sendall(data)


def read_line(connection: socket.socket, buffer: bytearray, deadline: float) -> bytes | None:
    """One line without its end, out of `buffer` and then the connection; None: not in time; empty: closed."""
    while (end := buffer.find(b"\n")) < 0:
        if len(buffer) > REPLY_LIMIT_BYTES:
            return b""
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            received = connection.recv(1 << 16)
        except TimeoutError:
            return None
        except ConnectionResetError:
            return b""
        if not received:
            return b""
        buffer += received
    line = bytes(buffer[:end])
    del buffer[: end + 1]
    return line
