"""What an agent may ask its node: find and run a program, set the promotion score.

Programs stay in the agent's process group, so that they die with it when the manager's time-out strikes.
"""

from __future__ import annotations

import errno
import posix
import time

from agents.ocf.exit_code import ERR_GENERIC, ERR_INSTALLED, AgentError
from agents.ocf.signals import SIGHUP, SIGINT, SIGKILL, SIGPIPE, SIGTERM, pidfd_send_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SEARCH_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
OUTPUT_LIMIT_BYTES = 64 * 1024
NEVER = 86_400.0


class Completed:
    """How a program ended. `code` is the exit code, or minus the signal number; `output` both streams together."""

    def __init__(self, code: int, output: str, timed_out: bool) -> None:
        self.code = code
        self.output = output
        self.timed_out = timed_out

    @property
    def last_line(self) -> str:
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return lines[-1] if lines else ""


class Node:
    """The machine the agent runs on."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment

    def find_program(self, name: str) -> str:
        """Absolute path of a program. PATH is not trusted: it is whatever the cluster daemon was started with.

        Raises AgentError (5) when it is not installed here.
        """
        candidates = [name] if name.startswith("/") else [f"{directory}/{name}" for directory in SEARCH_PATH]
        for path in candidates:
            if posix.access(path, posix.X_OK) and posix.stat(path).st_mode & 0o170000 == 0o100000:
                return path
        raise AgentError(ERR_INSTALLED, f"program {name} is not installed on this node; install it or correct its path")

    def run(
        self, arguments: Sequence[str], *, timeout_s: float = NEVER, environment: Mapping[str, str] | None = None
    ) -> Completed:
        """Run a program to its end, standard input from /dev/null; SIGKILL after `timeout_s` seconds.

        Output goes through memory and not a pipe, so a daemon that the program leaves behind cannot hold us up.
        Raises AgentError (5) when the program does not exist.
        """
        path = self.find_program(arguments[0])
        output = posix.memfd_create("output", posix.MFD_CLOEXEC)
        try:
            pid = posix.posix_spawn(
                path,
                [path, *arguments[1:]],
                dict(self.environment if environment is None else environment),
                file_actions=[
                    (posix.POSIX_SPAWN_OPEN, 0, "/dev/null", posix.O_RDONLY, 0),
                    (posix.POSIX_SPAWN_DUP2, output, 1),
                    (posix.POSIX_SPAWN_DUP2, output, 2),
                ],
                # Python ignores SIGPIPE and children would inherit that
                setsigdef=[SIGPIPE, SIGTERM, SIGINT, SIGHUP],
            )
            code, timed_out = wait_for(pid, timeout_s)
            size = posix.fstat(output).st_size
            data = posix.pread(output, OUTPUT_LIMIT_BYTES, max(0, size - OUTPUT_LIMIT_BYTES))
        finally:
            posix.close(output)
        return Completed(code, data.decode("utf-8", "replace"), timed_out)

    def set_promotion_score(self, score: int | str | None) -> None:
        """Publish how fit this instance is to be promoted: a number, "-INFINITY" to forbid it; None removes the score.

        Every change makes the manager compute again, so call it only when the value differs.
        Raises AgentError (1) when the manager does not take it, (5) when crm_attribute is missing.
        """
        arguments = ["crm_attribute", "--promotion", *(["-D"] if score is None else [f"--update={score}"])]
        done = self.run(arguments)
        if done.code != 0:
            fact = f"crm_attribute ended with {done.code}: {done.last_line}"
            raise AgentError(ERR_GENERIC, f"promotion score not set: {fact}")


def wait_for(pid: int, timeout_s: float) -> tuple[int, bool]:
    """Exit code of a child (minus the signal number if one ended it), and whether we had to kill it."""
    import select

    timed_out = False
    descriptor = posix.pidfd_open(pid, 0)
    try:
        end = time.monotonic() + timeout_s
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        while (left := end - time.monotonic()) > 0 and not poller.poll(left * 1000):
            pass
        if not poller.poll(0):
            timed_out = True
    finally:
        # also reached by the action's own deadline: nothing of ours may go on behind the manager's back
        try:
            finished, status = posix.waitpid(pid, posix.WNOHANG)
            if finished == 0:
                pidfd_send_signal(descriptor, SIGKILL)
                _, status = posix.waitpid(pid, 0)
        finally:
            posix.close(descriptor)
    return posix.waitstatus_to_exitcode(status), timed_out


def describe(error: OSError) -> str:
    """`EBUSY: Device or resource busy`, in that order, since the name is what one searches for."""
    name = errno.errorcode.get(error.errno or 0, "error")
    return f"{name}: {error.strerror}"
