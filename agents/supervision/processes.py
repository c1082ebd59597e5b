"""The processes of this machine, read from /proc, and how to end some of them.

Read with built-in modules only: a stop must also work where no package is installed, and a probe must be quick.
"""

from __future__ import annotations

import posix
import time

from agents.ocf.process import Process
from agents.ocf.signals import SIGCONT, SIGKILL
from agents.ocf.state import boot_id, read_small
from agents.supervision.belonging import MARK, Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from agents.supervision.belonging import Identity

POLL_S = 0.1
# more than this is waited for by looking again; a process may open 1024 files by default
POLLED_LIMIT = 256


def read_table() -> dict[int, Entry]:
    """All living processes but kernel threads. One that ends while we look is left out."""
    own_namespace = namespace_of("self")
    table = {}
    for name in posix.listdir("/proc"):
        if name.isdigit():
            entry = read_entry(int(name), own_namespace)
            if entry is not None:
                table[entry.pid] = entry
    return table


def read_entry(pid: int, own_namespace: str) -> Entry | None:
    text = read_small(f"/proc/{pid}/stat")
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    # 2 is the parent of all kernel threads; a zombie with living threads is a process whose first thread has ended
    if len(fields) < 20 or int(fields[1]) == 2 or (fields[0] in "ZXx" and int(fields[17]) < 2):
        return None
    users = user_ids(pid)
    if users is None:
        return None
    return Entry(
        pid,
        int(fields[1]),
        int(fields[2]),
        int(fields[3]),
        int(fields[19]),
        head.partition("(")[2],
        state=fields[0],
        arguments=tuple(read_small(f"/proc/{pid}/cmdline").split("\0")[:2]),
        real_user=users[0],
        user=users[1],
        mark=mark_of(pid),
        is_here=namespace_of(str(pid)) == own_namespace,
    )


def user_ids(pid: int) -> tuple[int, int] | None:
    """Real and effective user id; None when the process has ended."""
    for line in read_small(f"/proc/{pid}/status").splitlines():
        if line.startswith("Uid:"):
            real, effective = line.split()[1:3]
            return int(real), int(effective)
    return None


def mark_of(pid: int) -> str:
    for variable in read_small(f"/proc/{pid}/environ").split("\0"):
        if variable.startswith(MARK + "="):
            return variable.partition("=")[2]
    return ""


def namespace_of(pid: str) -> str:
    """Name of its PID namespace; "" when we may not see it, which is no namespace of ours."""
    try:
        return posix.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def pid_in_file(path: str) -> int | None:
    """The first word of a pid file, if that is a pid."""
    word = next(iter(read_small(path).split()), "")
    return int(word) if word.isascii() and word.isdigit() and int(word) > 1 else None


def is_older_than_file(entry: Entry, path: str) -> bool:
    """Had the process started when the file was written? (2 s of grace: file times are coarse)"""
    try:
        written = posix.stat(path).st_mtime
    except OSError:
        return False
    started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + entry.start_ticks / posix.sysconf("SC_CLK_TCK")
    return started <= written + 2


def end_all(
    find: Callable[[], list[Entry]],
    signal_number: int,
    *,
    signal_s: Callable[[], float],
    kill_s: Callable[[], float],
) -> list[Entry]:
    """Ask those whom `find` finds to end, wait `signal_s()` seconds, then SIGKILL for `kill_s()`. Returns survivors.

    `find` is called again and again, so that children born meanwhile are met too. A process that was stopped
    (SIGSTOP) is continued, since it could not even hear the request.
    """
    asked: set[Identity] = set()
    limit = time.monotonic() + signal_s()
    while left := find_surely(find):
        for entry in left:
            if entry.identity not in asked:
                asked.add(entry.identity)
                send(entry, signal_number)
                send(entry, SIGCONT)
        if time.monotonic() >= limit:
            break
        wait_for_ends(left, min(POLL_S, limit - time.monotonic()))
    limit = time.monotonic() + kill_s() if left else 0.0
    while left:
        for entry in left:
            send(entry, SIGKILL)
        wait_for_ends(left, POLL_S)
        left = find_surely(find)
        if time.monotonic() >= limit:
            break
    return left


def find_surely(find: Callable[[], list[Entry]]) -> list[Entry]:
    """Nobody counts only when seen twice: a process can be born behind our back while the list is read."""
    return find() or find()


def send(entry: Entry, signal_number: int) -> None:
    """To exactly this process: one that took over its pid in between is not hit."""
    Process(entry.pid, entry.start_ticks, boot_id()).send(signal_number)


def wait_for_ends(entries: list[Entry], limit_s: float) -> None:
    """Until all of them have ended, or a while."""
    import select

    poller = select.poll()
    waiting: set[int] = set()
    try:
        for entry in entries[:POLLED_LIMIT]:
            try:
                descriptor = posix.pidfd_open(entry.pid, 0)
            except OSError:
                continue
            waiting.add(descriptor)
            poller.register(descriptor, select.POLLIN)
        end = time.monotonic() + limit_s
        pending = set(waiting)
        while pending and (left := end - time.monotonic()) > 0:
            for descriptor, _ in poller.poll(left * 1000):
                pending.discard(descriptor)
                poller.unregister(descriptor)
    finally:
        for descriptor in waiting:
            posix.close(descriptor)


def describe_entry(entry: Entry) -> str:
    """`1234 (name)`, and where it hangs when it cannot be interrupted."""
    text = f"{entry.pid} ({entry.name})"
    if entry.state != "D":
        return text
    return f"{text} in state D at {read_small(f'/proc/{entry.pid}/wchan') or '?'}"


def listed(entries: list[Entry]) -> str:
    """The first three, and how many more; "" for none."""
    more = f" and {len(entries) - 3} more" if len(entries) > 3 else ""
    return ", ".join(describe_entry(entry) for entry in entries[:3]) + more
