"""The life of a resource's daemon, seen from outside: start it, wait for its end, end it whatever it does.

Who the daemon is, its lock on the pid file says (replication.control): no number left over from a dead process, no
name that another program could have too. Signals go through a pidfd, so that they reach this very process or none.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import replication
from replication.control import MirrorClient, Verb, control_path, daemon_pid, make_private
from replication.errors import MirrorError, Unavailable

LOOK_EVERY_S = 0.05
LAST_LINES = 8
"""How much of its log is shown of a daemon that died at once."""


def start(resource: str, command: Sequence[str], runtime: Path, log: Path, deadline: float) -> None:
    """Start the daemon in a session of its own and wait until it answers.

    Raises Unavailable, with its last words, when it ends instead, or when it has not answered by the deadline.
    """
    client = MirrorClient(resource, runtime)
    process, begin = _spawn(resource, command, runtime, log)
    while True:
        ended = process.poll()
        with contextlib.suppress(MirrorError):
            client.ask(Verb.STATUS, max(min(deadline - time.monotonic(), 2.0), LOOK_EVERY_S))
            return
        if ended is not None:
            last_words = " | ".join(_lines_since(log, begin)) or "without a word"
            how = f"ended with exit code {ended}" if ended >= 0 else f"was ended by {signal.Signals(-ended).name}"
            raise Unavailable(f"mirror {resource}", f"its mirrord {how}: {last_words}", f"see {log}")
        if time.monotonic() >= deadline:
            fact = f"its mirrord (process {process.pid}) runs and does not answer yet"
            raise Unavailable(f"mirror {resource}", fact, f"see {log}; mirroradm down --force {resource} ends it")
        time.sleep(LOOK_EVERY_S)


def _spawn(resource: str, command: Sequence[str], runtime: Path, log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """The process, and where in the log it begins. Raises Unavailable."""
    try:
        make_private(control_path(resource, runtime).parent)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            begin = output.tell()  # now: the child's writes move it
            # `-m` finds the package in the working directory: the daemon is of the same version as this command
            process = subprocess.Popen(
                list(command),
                cwd=Path(replication.__file__).parents[1],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            return process, begin
    except OSError as error:
        fact = f"its mirrord cannot be started: {error.filename or command[0]}: {error.strerror}"
        raise Unavailable(f"mirror {resource}", fact, "run it as root") from error


def wait_for_end(resource: str, runtime: Path, deadline: float) -> bool:
    """False: it is still there at the deadline."""
    while daemon_pid(resource, runtime) is not None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(LOOK_EVERY_S)
    return True


def kill(resource: str, runtime: Path, deadline: float) -> list[str]:
    """End the daemon, and the programs it has started, by SIGKILL. Gives sentences of what was done.

    Raises Unavailable when the kernel keeps it alive beyond the deadline, because it waits for a disk.
    """
    with _pinned(resource, runtime) as pinned:
        if pinned is None:
            return ["it had ended by itself"]
        pid, descriptor = pinned
        # the programs it started are in its session; a daemon started from a shell is in the shell's, which is spared
        leads = _session(pid) == pid
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        done = [f"killed its mirrord (process {pid})"]
        if leads:
            done += [f"killed {name} (process {child})" for child, name in _kill_session(pid)]
        if not select.select([descriptor], [], [], max(deadline - time.monotonic(), 0.1))[0]:
            fact = f"its mirrord (process {pid}) is killed, but waits in the kernel, most likely for its disk"
            raise Unavailable(f"mirror {resource}", fact, "it ends as soon as the disk answers or is gone")
    return done


def clean(resource: str, runtime: Path) -> list[str]:
    """Remove the sockets of a daemon that is no more. The pid file stays: whoever holds its lock is the daemon."""
    removed = []
    directory = control_path(resource, runtime).parent
    for path in [*directory.glob("control"), *directory.glob("*.nbd")]:
        if daemon_pid(resource, runtime) is None:
            path.unlink(missing_ok=True)
            removed.append(f"removed {path}")
    return removed


@contextlib.contextmanager
def _pinned(resource: str, runtime: Path) -> Iterator[tuple[int, int] | None]:
    """The daemon's process and a pidfd of it; None when there is none."""
    pid = daemon_pid(resource, runtime)
    if pid == 0:
        raise Unavailable(f"mirror {resource}", "its mirrord runs in another process namespace", "end it there")
    try:
        descriptor = None if pid is None else os.pidfd_open(pid)
    except ProcessLookupError:
        descriptor = None
    if pid is None or descriptor is None:
        yield None
        return
    try:
        # looked at again: only now is it certain that the descriptor and the lock mean the same process
        yield (pid, descriptor) if daemon_pid(resource, runtime) == pid else None
    finally:
        os.close(descriptor)


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _kill_session(leader: int) -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == leader or _session(int(entry.name)) != leader:
            continue
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            descriptor = os.pidfd_open(int(entry.name))
            try:
                name = (entry / "comm").read_text().strip()
                if _session(int(entry.name)) == leader:
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                    yield int(entry.name), name
            finally:
                os.close(descriptor)


def _lines_since(log: Path, begin: int) -> list[str]:
    with log.open("rb") as file:
        file.seek(begin)
        text = file.read(1 << 20).decode(errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()][-LAST_LINES:]
