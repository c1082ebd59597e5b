"""Two hosts on one machine: a mirrord each, in UTS namespaces of their own, and nothing of them left afterwards.

alpha and beta share the kernel, /dev and the loopback network; images, configuration, sockets and logs are each host's
own. What an operator would type is typed here too, as a program; only waiting asks the control socket itself.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from replication.control import MirrorClient, Verb, daemon_pid
from replication.create_metadata import inspect
from replication.errors import MirrorError
from replication.mounts import mounts_here

PROJECT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
ADDRESSES = {"alpha": "127.0.0.1", "beta": "127.0.0.2"}
STRANGER = "127.0.0.3"
SECRET = "of the tests"
PATIENCE_S = 20.0
PACKAGES = {
    "qemu-io": "qemu-utils",
    "nbdinfo": "libnbd-bin",
    "nbdcopy": "libnbd-bin",
    "nbdfuse": "libnbd-bin",
    "fio": "fio",
    "drbdmeta": "drbd-utils",
    "mkfs.ext4": "e2fsprogs",
    "fsck.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "xfs_repair": "xfsprogs",
}

RES = """\
resource {name} {{
    net {{
        protocol C;
        ping-int 1;
        ping-timeout 5;
        timeout 20;
        ko-count 7;
        connect-int 1;
        cram-hmac-alg sha256;
        shared-secret "{secret}";
    }}
    on alpha {{ device minor 0; disk {alpha}; meta-disk internal; address 127.0.0.1:{port}; }}
    on beta {{ device minor 0; disk {beta}; meta-disk internal; address 127.0.0.2:{port}; }}
}}
"""

_numbers = itertools.count()


def wait_until(reached: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Look again and again; AssertionError says `what` did not come true."""
    deadline = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)


def program(*command: str | Path, timeout_s: float = 60.0) -> str:
    """Run a program that has to succeed; what it said on standard output."""
    done = _run([str(word) for word in command], timeout_s)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def failing_program(*command: str | Path, timeout_s: float = 60.0) -> str:
    """Run a program that has to fail; all it said."""
    done = _run([str(word) for word in command], timeout_s)
    assert done.returncode != 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def _run(command: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    package = PACKAGES.get(command[0])
    assert package is None or shutil.which(command[0]), f"{command[0]} is missing; apt-get install {package}"
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, errors="replace"
    )


class Side:
    """One of the two hosts."""

    def __init__(self, name: str, mirror: str, directory: Path, port: int) -> None:
        self.name, self.mirror, self.port = name, mirror, port
        self.address = ADDRESSES[name]
        self.image = directory / "disk.img"
        self.configuration = directory / "mirror.d"
        self.runtime = directory / "run"
        self.state = directory / "lib"
        self.logs = directory / "log"
        self.configuration.mkdir(parents=True)

    @property
    def socket(self) -> Path:
        return self.runtime / self.mirror / "0.nbd"

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.socket}"

    @property
    def device(self) -> Path:
        """Which host has it, its Primary knows: /dev is one for both."""
        return Path("/dev/mirrorha") / self.mirror / "0"

    # what is typed

    def command(self, *words: str) -> list[str]:
        options = ["-c", str(self.configuration), "--runtime-directory", str(self.runtime)]
        options += ["--state-directory", str(self.state), "--log-directory", str(self.logs)]
        return self.on_this_host(sys.executable, "-m", "replication.commands.mirroradm", *words, *options)

    def on_this_host(self, *command: str) -> list[str]:
        return ["unshare", "--uts", "sh", "-c", f'hostname {self.name} && exec "$@"', "sh", *command]

    def run(self, *words: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def adm(self, verb: str, *options: str) -> str:
        """mirroradm, which has to succeed; what it said on standard output."""
        done = self.run(verb, self.mirror, *options)
        assert done.returncode == 0, f"{self.name}: {verb}: {done.returncode}: {done.stderr}\n{self.log()}"
        return done.stdout

    def refused(self, code: int, verb: str, *options: str) -> str:
        """mirroradm, which has to end with `code`; what it said on standard error."""
        done = self.run(verb, self.mirror, *options)
        assert done.returncode == code, f"{self.name}: {verb}: {done.returncode}, not {code}: {done.stderr}"
        assert not done.stdout, done.stdout
        return done.stderr

    # how it is

    def status(self) -> dict[str, Any]:
        return MirrorClient(self.mirror, self.runtime).ask(Verb.STATUS, 5.0)

    @property
    def states(self) -> tuple[str, str, str]:
        """Role, connection and disk, as `mirroradm status` has them."""
        status = self.status()
        return status["role"], status["connections"][0]["connection-state"], status["devices"][0]["disk-state"]

    @property
    def reason(self) -> str:
        """Why it is so, and what to type."""
        mirror = self.status()["mirror"]
        return f"{mirror['reason']}; {mirror['remedy']}"

    def becomes(self, *states: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until role, connection and disk are these."""
        seen: list[tuple[str, str, str]] = []

        def reached() -> bool:
            if not seen or seen[-1] != self.states:
                seen.append(self.states)
            return seen[-1] == states

        try:
            wait_until(reached, "", timeout_s)
        except AssertionError:
            raise AssertionError(f"{self.name} became {seen}, never {states}; {self.reason}\n{self.log()}") from None

    def log(self) -> str:
        path = self.logs / f"mirror-{self.mirror}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    @property
    def pid(self) -> int | None:
        return daemon_pid(self.mirror, self.runtime)

    # what happens to it

    def kill(self) -> None:
        """mirrord dies as in a crash."""
        self.signal(signal.SIGKILL)
        wait_until(lambda: self.pid is None, f"mirrord on {self.name} ends")

    def signal(self, number: signal.Signals) -> None:
        assert self.pid is not None, f"mirrord does not run on {self.name}\n{self.log()}"
        os.kill(self.pid, number)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """mirrord does not run for a while, as in a paused virtual machine; its peer gives it up before long."""
        pid = self.pid
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            if self.pid == pid:
                self.signal(signal.SIGCONT)

    # its data

    @property
    def data_bytes(self) -> int:
        descriptor = os.open(self.image, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return inspect(descriptor, self.image.stat().st_size, str(self.image)).layout.data_bytes
        finally:
            os.close(descriptor)

    def fill(self, megabytes: int) -> None:
        """What was on the disk before it became a mirror's: something else on each host."""
        with self.image.open("r+b") as file:
            file.write(random.Random(self.name).randbytes(megabytes * MIB))

    def qemu_io(self, *commands: str) -> str:
        """Each command of qemu-io(1) in turn, on the NBD socket."""
        words = [word for command in commands for word in ("-c", command)]
        said = program("qemu-io", "-t", "writeback", "-f", "raw", *words, self.uri)
        assert "failed" not in said, said
        return said

    def drbdmeta(self, *command: str) -> str:
        """DRBD's metadata tool, on the disk of a mirror that is down."""
        Path("/var/run/drbd").mkdir(parents=True, exist_ok=True)
        minor = str(1000 + os.getpid() % 100_000)
        try:
            return program("drbdmeta", "--force", minor, "v08", self.image, "internal", *command)
        finally:
            Path(f"/var/lib/drbd/drbd-minor-{minor}.lkbd").unlink(missing_ok=True)


class Pair:
    """alpha, beta and the mirror between them."""

    def __init__(self, directory: Path, size_mib: int, device: str, backing_io: dict[str, str]) -> None:
        self.name = f"t{os.getpid()}n{next(_numbers)}"
        self.port = _free_port()
        self.alpha = Side("alpha", self.name, directory / "alpha", self.port)
        self.beta = Side("beta", self.name, directory / "beta", self.port)
        self.sides = (self.alpha, self.beta)
        for side in self.sides:
            with side.image.open("wb") as file:
                file.truncate(size_mib * MIB)
            self.configure(side)
            options = f'device = "{device}"\nbacking_io = "{backing_io[side.name]}"\n'
            (side.configuration / f"{self.name}.toml").write_text(options)

    def configure(self, side: Side, secret: str = SECRET) -> None:
        path = side.configuration / f"{self.name}.res"
        images = {other.name: other.image for other in self.sides}
        path.write_text(RES.format(name=self.name, port=self.port, secret=secret, **images))
        path.chmod(0o600)

    def on_both(self, verb: str, *options: str) -> None:
        """At the same time."""
        running = [
            subprocess.Popen(
                side.command(verb, self.name, *options),
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for side in self.sides
        ]
        said = [process.communicate(timeout=60)[0] for process in running]
        assert all(process.returncode == 0 for process in running), said

    def begin(self) -> Pair:
        """Fresh metadata on both, both up: connected, and nobody's data are good."""
        self.on_both("create-md")
        self.on_both("up")
        for side in self.sides:
            side.becomes("Secondary", "Connected", "Inconsistent")
        return self

    def begin_equal(self) -> Pair:
        """Connected, both good, empty."""
        self.begin()
        self.alpha.adm("new-current-uuid", "--clear-bitmap")
        self.is_equal()
        return self

    def is_equal(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait until both sides are connected, good, and no resync runs."""
        for side in self.sides:
            side.becomes(side.states[0], "Connected", "UpToDate", timeout_s=timeout_s)

    def side(self, name: str) -> Side:
        return next(side for side in self.sides if side.name == name)

    def demote(self) -> None:
        """No Primary any more, if there was one."""
        for side in self.sides:
            if side.states[0] == "Primary":
                side.adm("secondary")

    def promote(self, side: Side) -> Side:
        """This one is Primary, and the other is not."""
        if side.states[0] != "Primary":
            self.demote()
            side.adm("primary")
        return side

    def end(self) -> None:
        """Demote and stop both, as one does before a maintenance."""
        self.demote()
        self.on_both("down")

    def data_are_equal(self) -> None:
        """All that a user of the mirror could read is the same on both disks. Both sides must be down or demoted."""
        size = min(side.data_bytes for side in self.sides)
        program("cmp", "-n", str(size), self.alpha.image, self.beta.image)

    def drbd_accepts_metadata(self) -> None:
        """After a clean stop of both: DRBD's tool finds them in order, and no activity log to replay."""
        for side in self.sides:
            dump = side.drbdmeta("dump-md")
            assert "effective-size" in dump or "la-size-sect" in dump, dump
            side.drbdmeta("apply-al")

    def is_clean(self) -> None:
        """End everything, and see both data and metadata in order."""
        self.end()
        self.data_are_equal()
        self.drbd_accepts_metadata()

    def remove(self) -> None:
        """Whatever has become of it: no process, mount, loop device or node in /dev stays."""
        for side in self.sides:
            pid = side.pid
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        wait_until(lambda: all(side.pid is None for side in self.sides), "every mirrord ends")
        device = self.alpha.device
        own = [mount.mount_point for mount in mounts_here() if self.is_own(mount.source)]
        for point in reversed(own):
            program("umount", "-l", point)
        wait_until(lambda: not self.remains(), f"nothing of {device} is left")

    def is_own(self, source: str) -> bool:
        """Whether this is the mirror's device, by the name users give it or its loop device."""
        return source == str(self.alpha.device) or source in self.loops()

    def loops(self) -> list[str]:
        """Loop devices over this mirror's NBD server."""
        found = []
        for path in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):
                if f"mirrorha!{self.name}!0" in path.read_text(encoding="utf-8", errors="replace"):
                    found.append(f"/dev/{path.parents[1].name}")
        return found

    def remains(self) -> list[str]:
        """Whatever the kernel still has of this mirror's device."""
        left = [path for path in (self.alpha.device, self.alpha.device.parent) if os.path.lexists(path)]
        mounts = [mount.mount_point for mount in mounts_here() if f"/{self.name}/" in mount.mount_point]
        return [*map(str, left), *self.loops(), *mounts]


@contextlib.contextmanager
def pair_below(directory: Path, size_mib: int = 64, device: str = "none") -> Iterator[Pair]:
    """Two hosts as configured, with nothing begun; removed in the end. alpha uses the page cache, beta does not."""
    pair = Pair(directory, size_mib, device, {"alpha": "buffered", "beta": "direct"})
    try:
        yield pair
    finally:
        pair.remove()


def answers(side: Side) -> bool:
    try:
        side.status()
    except MirrorError:
        return False
    return True


def _free_port() -> int:
    """Below those that the kernel gives to outgoing connections."""
    for attempt in itertools.count():
        port = 10_000 + (os.getpid() * 7 + next(_numbers) + attempt) % 20_000
        with contextlib.ExitStack() as stack:
            try:
                for address in ADDRESSES.values():
                    listener = stack.enter_context(socket.socket())
                    listener.bind((address, port))
                return port
            except OSError:
                continue
    raise AssertionError
