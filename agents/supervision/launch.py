"""Start a program as the application's user. The only place that forks.

A program is let go only after the caller has written down who it is: the child waits at a gate (a pipe) and ends by
itself if the agent dies before opening it. So there is never a process of the application that no record knows.
"""

from __future__ import annotations

import errno
import posix
import time

from agents.ocf.exit_code import ERR_ARGS, ERR_GENERIC, ERR_INSTALLED, AgentError
from agents.ocf.node import Completed, describe
from agents.ocf.signals import SIGKILL, accept_all_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import NoReturn

    from agents.supervision.command_line import Invocation

OUTPUT_LIMIT_BYTES = 64 * 1024
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DESCRIPTOR_LIMIT = 1 << 20
# SIGKILL works at once, except on a process that waits for a dead disk or server: that one is left to itself
VANISH_WAIT_S = 0.1


class User:
    """Whom a program runs as. Group members are looked up by the system (initgroups)."""

    def __init__(self, name: str, user_id: int, group_id: int, home: str, shell: str) -> None:
        self.name = name
        self.user_id = user_id
        self.group_id = group_id
        self.home = home
        self.shell = shell


def find_user(name: str, group: str) -> User:
    """Raises AgentError (5) when this node does not know the user or the group. "" = the user's own group."""
    import grp
    import pwd

    try:
        known = pwd.getpwnam(name)
    except KeyError:
        raise AgentError(ERR_INSTALLED, f"user {name} does not exist on this node; create it or correct user") from None
    try:
        group_id = grp.getgrnam(group).gr_gid if group else known.pw_gid
    except KeyError:
        fact = f"group {group} does not exist on this node"
        raise AgentError(ERR_INSTALLED, f"{fact}; create it or correct group") from None
    return User(name, known.pw_uid, group_id, known.pw_dir, known.pw_shell)


def user_id_of(name: str) -> int | None:
    """None when this node does not know the user."""
    import pwd

    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def environment_for(user: User, instance: str, more: Mapping[str, str]) -> dict[str, str]:
    """A clean one: what the cluster daemon was started with must not decide how the application runs."""
    return {
        "PATH": PATH,
        "LANG": "C.UTF-8",
        "HOME": user.home,
        "USER": user.name,
        "LOGNAME": user.name,
        "SHELL": user.shell,
        "OCF_ROOT": "/usr/lib/ocf",
        "OCF_RESOURCE_INSTANCE": instance,
        **more,
    }


class Launch:
    """How to run one program. `path` is the executable of `invocation`, `log_file` gets its output ("" = /dev/null)."""

    def __init__(
        self,
        path: str,
        invocation: Invocation,
        user: User,
        environment: Mapping[str, str],
        *,
        directory: str,
        file_mask: int,
        log_file: str = "",
    ) -> None:
        self.path = path
        self.invocation = invocation
        self.user = user
        self.environment = environment
        self.directory = directory
        self.file_mask = file_mask
        self.log_file = log_file


def spawn(launch: Launch, write_down: Callable[[int], None], *, own_session: bool, output: int | None = None) -> int:
    """Fork, call `write_down(pid)`, execute. Returns the pid.

    own_session   a session for what must outlive the agent, else only a process group
    output        descriptor for both output streams instead of `launch.log_file`
    Raises AgentError (2 or 5) when it cannot be executed, and whatever `write_down` raises; nothing runs then.
    """
    gate, opener = posix.pipe2(posix.O_CLOEXEC)
    trouble, complaint = posix.pipe2(posix.O_CLOEXEC)
    pid = posix.fork()
    if pid == 0:
        try:
            posix.close(opener)
            become(launch, gate, complaint, own_session, output)
        finally:
            posix._exit(127)
    posix.close(gate)
    posix.close(complaint)
    try:
        try:
            write_down(pid)
            posix.write(opener, b".")
        finally:
            posix.close(opener)
        words = read_to_end(trouble).decode("utf-8", "replace")
    except BaseException:
        # the gate is shut, so it ends at once; a deadline may also strike while it changes into a hanging directory
        posix.kill(pid, SIGKILL)
        has_ended(pid, VANISH_WAIT_S)
        raise
    finally:
        posix.close(trouble)
    if words:
        posix.waitpid(pid, 0)
        what, _, number = words.rpartition(" ")
        error = OSError(int(number), posix.strerror(int(number)))
        code = ERR_INSTALLED if int(number) in (errno.ENOENT, errno.ENOTDIR) else ERR_ARGS
        raise AgentError(code, f"{what}: {describe(error)}; correct it or the permissions of user {launch.user.name}")
    return pid


def become(launch: Launch, gate: int, complaint: int, own_session: bool, output: int | None) -> NoReturn:
    """In the child: turn into the program, or tell the agent why not."""
    step = "new session"
    user = launch.user
    try:
        if own_session:
            posix.setsid()
        else:
            posix.setpgid(0, 0)
        accept_all_signals()
        if not posix.read(gate, 1):
            posix._exit(126)
        posix.umask(launch.file_mask)
        step = f"change to user {user.name}"
        if posix.geteuid() == 0:
            posix.initgroups(user.name, user.group_id)
            posix.setgid(user.group_id)
            posix.setuid(user.user_id)
        step = f"workdir {launch.directory}"
        posix.chdir(launch.directory)
        step = f"logfile {launch.log_file}"
        null = posix.open("/dev/null", posix.O_RDWR)
        if output is None and launch.log_file:
            flags = posix.O_WRONLY | posix.O_APPEND | posix.O_CREAT | posix.O_NOCTTY
            output = posix.open(launch.log_file, flags, 0o666)
        posix.dup2(null, 0)
        posix.dup2(null if output is None else output, 1)
        posix.dup2(1, 2)
        posix.closerange(3, complaint)
        posix.closerange(complaint + 1, DESCRIPTOR_LIMIT)
        step = f"program {launch.path}"
        posix.execve(launch.path, launch.invocation.arguments, dict(launch.environment))
    except OSError as error:
        posix.write(complaint, f"{step} {error.errno or 0}".encode("utf-8", "surrogateescape"))
    posix._exit(127)


def run_script(launch: Launch, write_down: Callable[[int], None], limit_s: float) -> Completed:
    """Run a script to its end in a process group of its own; SIGKILL to the whole group after `limit_s` seconds.

    Raises AgentError as `spawn` does.
    """
    output = posix.memfd_create("output", posix.MFD_CLOEXEC)
    try:
        give_to(output, launch.user)
        pid = spawn(launch, write_down, own_session=False, output=output)
        code, timed_out = wait_for_group(pid, limit_s)
        return Completed(code, tail(output, 0), timed_out)
    finally:
        posix.close(output)


def create_for(path: str, user: User) -> int:
    """An empty file of the user's, open for appending. Raises AgentError (1) when it cannot be made."""
    flags = posix.O_RDWR | posix.O_CREAT | posix.O_TRUNC | posix.O_APPEND | posix.O_NOFOLLOW | posix.O_CLOEXEC
    try:
        descriptor = posix.open(path, flags, 0o600)
    except OSError as error:
        raise AgentError(ERR_GENERIC, f"{path} cannot be written: {describe(error)}; make it writable") from None
    give_to(descriptor, user)
    return descriptor


def give_to(descriptor: int, user: User) -> None:
    """Let the user open it again: scripts write to /dev/stderr, which is a fresh open of their own descriptor."""
    if posix.geteuid() == 0:
        posix.fchown(descriptor, user.user_id, user.group_id)


def wait_for_group(pid: int, limit_s: float) -> tuple[int, bool]:
    """Exit code of a child that leads a group, and whether its group had to be killed."""
    timed_out = True
    try:
        timed_out = not has_ended(pid, limit_s)
    finally:
        # also when our own deadline strikes. The child is not reaped yet, so its number still means this group
        if timed_out:
            posix.killpg(pid, SIGKILL)
    if timed_out and not has_ended(pid, VANISH_WAIT_S):
        return -SIGKILL, True
    return exit_code_of(pid), timed_out


def has_ended(pid: int, limit_s: float) -> bool:
    """Wait for a child to end, without reaping it."""
    import select

    descriptor = posix.pidfd_open(pid, 0)
    try:
        end = time.monotonic() + limit_s
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        while True:
            left = end - time.monotonic()
            if poller.poll(max(0.0, left) * 1000):
                return True
            if left <= 0:
                return False
    finally:
        posix.close(descriptor)


def exit_code_of(child: int) -> int:
    """Of a child that has ended; minus the signal number if one ended it."""
    return posix.waitstatus_to_exitcode(posix.waitpid(child, 0)[1])


def tail(descriptor: int, begin: int) -> str:
    """The last part of a file, nothing of it before the offset `begin`."""
    size = posix.fstat(descriptor).st_size
    begin = begin if begin <= size else 0
    first = max(begin, size - OUTPUT_LIMIT_BYTES)
    return posix.pread(descriptor, size - first, first).decode("utf-8", "replace")


def read_to_end(descriptor: int) -> bytes:
    data = b""
    while chunk := posix.read(descriptor, 4096):
        data += chunk
    return data


def require_directory(path: str) -> None:
    """Raises AgentError (5) when it is not there, (2) when it is something else."""
    try:
        mode = posix.stat(path).st_mode
    except FileNotFoundError:
        raise AgentError(ERR_INSTALLED, f"workdir {path} does not exist on this node; create or mount it") from None
    except OSError as error:
        raise AgentError(ERR_GENERIC, f"workdir {path} cannot be looked at: {describe(error)}") from None
    if mode & 0o170000 != 0o040000:
        raise AgentError(ERR_ARGS, f"workdir {path} is not a directory; correct workdir")
