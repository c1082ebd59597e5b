"""Whatever may block is done by a child that the agent can abandon.

A process that waits for a dead disk or server sits in state D: SIGKILL reaches it only when the wait is over. Whoever
waits for such a child hangs too. So the agent waits for a limited time, sends SIGKILL, and leaves the child to init.
The child stays in the agent's process group, since what is under way must die with the agent where it can.
"""

from __future__ import annotations

import posix

from agents.ocf.signals import SIGKILL, accept_all_signals
from agents.supervision.launch import exit_code_of, has_ended, tail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import NoReturn

# SIGKILL works at once on whoever can be killed at all
VANISH_WAIT_S = 0.2
DESCRIPTOR_LIMIT = 1 << 20
FAILED = 1
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class Outcome:
    """How an errand ended. `code` is the exit code, or minus a signal number; None if it did not end in time.

    output      both streams together, also of one that did not end
    stuck_pid   the child, if not even SIGKILL ended it; else 0
    """

    def __init__(self, code: int | None, output: str, stuck_pid: int) -> None:
        self.code = code
        self.output = output
        self.stuck_pid = stuck_pid

    @property
    def is_good(self) -> bool:
        return self.code == 0

    @property
    def first_line(self) -> str:
        """What mount(8) complains of; general advice follows."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return lines[0] if lines else f"ended with {self.code}"

    @property
    def last_line(self) -> str:
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return lines[-1] if lines else ""


def run(work: Callable[[], None], write_down: Callable[[int], None], limit_s: float) -> Outcome:
    """Do `work` in a child; it may print to its descriptor 1, and fails by raising OSError.

    `write_down(pid)` is called before the work begins; if it raises, the work is not done.
    """
    output = posix.memfd_create("output", posix.MFD_CLOEXEC)
    try:
        pid, opener = fork_at_gate(work, output)
        is_over = False
        try:
            try:
                write_down(pid)
                posix.write(opener, b".")
            finally:
                posix.close(opener)
            is_over = has_ended(pid, limit_s)
        finally:
            if not is_over:  # also when the agent's own deadline strikes
                posix.kill(pid, SIGKILL)
        if not is_over and not has_ended(pid, VANISH_WAIT_S):
            return Outcome(None, tail(output, 0), pid)
        code = exit_code_of(pid)
        return Outcome(code if is_over else None, tail(output, 0), 0)
    finally:
        posix.close(output)


def fork_at_gate(work: Callable[[], None], output: int) -> tuple[int, int]:
    """Pid of the child, which waits, and the descriptor that lets it go on (a byte) or end (closing)."""
    gate, opener = posix.pipe2(posix.O_CLOEXEC)
    pid = posix.fork()
    if pid == 0:
        try:
            posix.close(opener)
            be_child(work, gate, output)
        finally:
            posix._exit(FAILED)
    posix.close(gate)
    return pid, opener


def be_child(work: Callable[[], None], gate: int, output: int) -> NoReturn:
    """Keep nothing of the agent's: its pipes would keep its caller waiting, its lock the next action."""
    accept_all_signals()
    null = posix.open("/dev/null", posix.O_RDWR)
    posix.dup2(null, 0)
    posix.dup2(output, 1)
    posix.dup2(output, 2)
    posix.dup2(gate, 3)  # the numbers of both pipes and the output are above 2, so none of them was overwritten
    posix.closerange(4, DESCRIPTOR_LIMIT)
    if posix.read(3, 1):
        posix.close(3)
        try:
            work()
            posix._exit(0)
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            posix.write(2, f"{error.strerror or error}{where}\n".encode("utf-8", "surrogateescape"))
    posix._exit(FAILED)


def program(path: str, *arguments: str) -> Callable[[], None]:
    """Work that turns into a program."""
    environment: Mapping[str, str] = {"PATH": PATH, "LC_ALL": "C"}

    def become() -> None:
        posix.execve(path, [path, *arguments], dict(environment))

    return become
