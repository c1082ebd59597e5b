"""What the mirror is measured against, and the mirror itself: each offers one NBD socket, on files of the same kind.

    mirror        mirrord on 127.0.0.1 mirroring to mirrord on 127.0.0.2, protocol C
    qemu-mirror   qemu-storage-daemon mirroring to another one over TCP: blockdev-mirror, copy-mode=write-blocking
    qemu-unix     the same over a unix socket. Over TCP, Debian 12's QEMU waits for delayed acknowledgements as soon as
                  several writes are under way (40 ms each); this shows what its mirror is capable of without them
    nbdkit-file   nbdkit's file plugin: one file, no replica
    bare-chain    the system calls of a mirrored write and nothing else, in Python (bare_chain.py); depth 1 only

All of them write through the page cache and pass flushes on.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGE_BYTES = 512 << 20
"""Of each file. What is used of it is less: the mirror keeps its metadata at the end."""
LIMIT_S = 60.0
PACKAGES = {
    "fio": "fio",
    "qemu-storage-daemon": "qemu-system-common",
    "nbdkit": "nbdkit",
    "unshare": "util-linux",
}
_ROOT = Path(__file__).resolve().parents[2]
_CHUNK = bytes(range(256)) * 4096


@dataclass(frozen=True)
class Served:
    """A device that can be measured. `files` are the replicas behind it, the first is the local one."""

    name: str
    socket: Path
    files: tuple[Path, ...]
    settled: Callable[[], None] = lambda: None
    """Returns once the replicas are equal; call it when nobody writes any more."""

    def write_out(self) -> None:
        """Nothing of this device is dirty in the page cache afterwards."""
        for file in self.files:
            descriptor = os.open(file, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def must_exist() -> None:
    """Ends the program, with the command to type, when something to measure is not installed."""
    missing = sorted({package for program, package in PACKAGES.items() if shutil.which(program) is None})
    if missing:
        sys.exit(f"bench: programs are missing: apt-get install {' '.join(missing)}")


def image(path: Path) -> Path:
    """A file all of whose blocks were written once and are on the disk."""
    with path.open("wb") as file:
        for _ in range(IMAGE_BYTES // len(_CHUNK)):
            file.write(_CHUNK)
        file.flush()
        os.fsync(file.fileno())
    return path


@contextmanager
def nbdkit_file(root: Path) -> Iterator[Served]:
    directory = root / "nbdkit"
    directory.mkdir()
    file, where = image(directory / "a.img"), directory / "s"
    with ExitStack() as stack:
        _start(stack, ["nbdkit", "--foreground", "--unix", str(where), "file", str(file)], directory / "log")
        _until(where.is_socket, "nbdkit's socket")
        yield Served("nbdkit-file", where, (file,))


@contextmanager
def bare_chain(root: Path) -> Iterator[Served]:
    directory = root / "bare"
    directory.mkdir()
    files = image(directory / "a.img"), image(directory / "b.img")
    where, port = directory / "s", str(_free_port("127.0.0.1"))
    program = [sys.executable, "-m", "tests.bench.bare_chain"]
    with ExitStack() as stack:
        _start(stack, [*program, "replica", str(files[1]), "127.0.0.1", port], directory / "log-b")
        _until(lambda: _is_bound(int(port)), "the replica of the bare chain")
        _start(stack, [*program, "primary", str(files[0]), str(where), "127.0.0.1", port], directory / "log-a")
        _until(where.is_socket, "the bare chain's socket")
        yield Served("bare-chain", where, files)


def _is_bound(port: int) -> bool:
    """Without a connection: the replica takes one only."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


@contextmanager
def qemu_mirror(root: Path, over: str = "tcp") -> Iterator[Served]:
    """`over`: tcp or unix."""
    directory = root / f"qemu-{over}"
    directory.mkdir()
    files = image(directory / "a.img"), image(directory / "b.img")
    where, monitor, port = directory / "s", directory / "monitor", str(_free_port("127.0.0.1"))

    def disk(file: Path) -> str:
        return f"driver=file,node-name=disk,filename={file},cache.direct=off,cache.no-flush=off"

    far = directory / "replica"
    where_to = {"type": "inet", "host": "127.0.0.1", "port": port} if over == "tcp" else {"type": "unix", "path": far}
    address, remote = (
        ",".join(f"{word}.{key}={value}" for key, value in where_to.items()) for word in ("addr", "server")
    )
    with ExitStack() as stack:
        target = ["qemu-storage-daemon", "--blockdev", disk(files[1]), "--nbd-server", address]
        target += ["--export", "type=nbd,id=export,node-name=disk,name=replica,writable=on"]
        _start(stack, target, directory / "log-b")
        _until(far.is_socket if over == "unix" else lambda: _is_bound(int(port)), "the replica's export")
        source = ["qemu-storage-daemon", "--blockdev", disk(files[0])]
        source += ["--blockdev", f"driver=nbd,node-name=replica,export=replica,{remote}"]
        source += ["--nbd-server", f"addr.type=unix,addr.path={where}"]
        source += ["--chardev", f"socket,id=monitor,path={monitor},server=on,wait=off", "--monitor", "chardev=monitor"]
        _start(stack, source, directory / "log-a")
        _until(monitor.is_socket, "qemu's monitor")
        qmp = stack.enter_context(_Monitor(monitor))
        qmp.ask("blockdev-mirror", **{
            "job-id": "mirror", "device": "disk", "target": "replica", "sync": "full",
            "copy-mode": "write-blocking", "filter-node-name": "mirrored",
        })  # fmt: skip
        _until(lambda: qmp.ask("query-jobs")[0]["status"] == "ready", "the replica to be complete")
        qmp.ask("block-export-add", **{
            "type": "nbd", "id": "export", "node-name": "mirrored", "name": "", "writable": True,
        })  # fmt: skip
        yield Served("qemu-mirror" if over == "tcp" else f"qemu-{over}", where, files)


@contextmanager
def mirror(root: Path, backing_io: str = "buffered") -> Iterator[Served]:
    """Two daemons, each in a UTS namespace of its own, since a resource knows its hosts by their names."""
    directory = root / f"mirror-{backing_io}"
    directory.mkdir()
    files = image(directory / "a.img"), image(directory / "b.img")
    hosts = [("alpha", "127.0.0.1", files[0]), ("beta", "127.0.0.2", files[1])]
    port = _free_port("127.0.0.1", "127.0.0.2")
    sections = [
        f"on {name} {{ device minor 0; disk {file}; meta-disk internal; address {address}:{port}; }}"
        for name, address, file in hosts
    ]
    resource = directory / "r0.res"
    resource.write_text(
        "resource r0 { net { protocol C; ping-int 1; connect-int 1; timeout 20; "
        f'cram-hmac-alg sha256; shared-secret "bench"; }} {" ".join(sections)} }}\n',
        encoding="utf-8",
    )
    resource.with_suffix(".toml").write_text(f'device = "none"\nbacking_io = "{backing_io}"\n', encoding="utf-8")

    def command(name: str, module: str, *words: str) -> list[str]:
        program = f'hostname {name}; exec {sys.executable} -m replication.{module} "$@"'
        where = ["-c", str(resource), "--runtime-directory", str(directory / f"run-{name}")]
        return ["unshare", "--uts", "sh", "-c", program, "sh", *words, *where]

    def adm(name: str, *words: str) -> str:
        done = subprocess.run(command(name, "commands.mirroradm", *words), cwd=_ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"mirroradm {' '.join(words)} on {name}: {done.stderr}")
        return done.stdout

    with ExitStack() as stack:
        for name, _, _ in hosts:
            adm(name, "create-md", "r0")
            state = ["--state-directory", str(directory / f"state-{name}")]
            _start(stack, command(name, "daemon", "r0", *state), directory / f"log-{name}")
            _until((directory / f"run-{name}" / "r0" / "control").is_socket, f"mirrord on {name}")

        def connected() -> bool:
            return all(adm(name, "cstate", "r0").strip() == "Connected" for name, _, _ in hosts)

        _until(connected, "the two daemons to meet")
        adm("alpha", "new-current-uuid", "--clear-bitmap", "r0")
        adm("alpha", "primary", "r0")

        def equal() -> None:
            _until(lambda: adm("alpha", "dstate", "r0").strip() == "UpToDate/UpToDate", "both disks to be UpToDate")

        equal()
        name = "mirror" if backing_io == "buffered" else f"mirror-{backing_io}"
        yield Served(name, directory / "run-alpha" / "r0" / "0.nbd", files, equal)


class _Monitor:
    """QEMU's monitor: one question, one answer."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(LIMIT_S)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rw", encoding="utf-8")
        self._lines.readline()
        self.ask("qmp_capabilities")

    def ask(self, question: str, **arguments: Any) -> Any:
        """Raises RuntimeError for an error."""
        self._lines.write(json.dumps({"execute": question, "arguments": arguments}) + "\n")
        self._lines.flush()
        while True:
            answer = json.loads(self._lines.readline())
            if "error" in answer:
                raise RuntimeError(f"{question}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def __enter__(self) -> _Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()


def _start(stack: ExitStack, command: list[str], log: Path) -> None:
    """Until the stack unwinds. `sh` and `unshare` are replaced by what they start."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def end() -> None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(end)


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"bench: waited {LIMIT_S:g} s for {what}")
        time.sleep(0.05)


def _free_port(*addresses: str) -> int:
    """One that nobody listens on at any of them."""
    with socket.socket() as first:
        first.bind((addresses[0], 0))
        port: int = first.getsockname()[1]
        for address in addresses[1:]:
            with socket.socket() as other:
                other.bind((address, port))
    return port
