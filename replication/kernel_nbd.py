"""NBD server -> the kernel's own NBD client (/dev/nbdN), where the nbd module exists.

Not tried on a real module yet: the machines this was written on have none. Only the commands are tested.

nbd-client stays in the foreground and uses ioctls instead of netlink: so the device belongs to a process, and ends with
it. It never connects anew (no -persist), since the end of mirrord on the active side is the end of the device. -swap
makes it lock its memory.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from replication.attach import DeviceSpec
from replication.errors import Refusal
from replication.hardening import die_with_parent

POLL_S = 0.01
READY_LIMIT_S = 10.0
GONE_LIMIT_S = 2.0
SYS_BLOCK = Path("/sys/block")


class KernelNbd:
    """One device of the kernel's client; made by `attach`, ended by `let_go` and `finish`, or with this process."""

    PROGRAM = "nbd-client"

    def __init__(self, path: str, server: subprocess.Popen[bytes]) -> None:
        self.path = path
        self.server = server
        """nbd-client; when it ends, the device is dead."""

    @classmethod
    def attach(cls, spec: DeviceSpec) -> KernelNbd:
        """On Refusal what was begun ends with this process."""
        for name in free_devices(SYS_BLOCK):
            server = _start(connect_command(spec, f"/dev/{name}"))
            deadline = time.monotonic() + READY_LIMIT_S
            while server.poll() is None and time.monotonic() < deadline:
                if _size_sectors(name) and (SYS_BLOCK / name / "pid").exists():
                    return cls(f"/dev/{name}", server)
                time.sleep(POLL_S)
            if server.poll() is None or name in free_devices(SYS_BLOCK):  # else somebody else took it: try the next
                raise Refusal(
                    f"device {spec.device}",
                    f"nbd-client does not connect /dev/{name}",
                    f"does the NBD server of {spec.socket} answer?",
                )
        raise Refusal(f"device {spec.device}", "no /dev/nbdN is free", "load nbd with a larger nbds_max")

    def let_go(self) -> bool:
        """Disconnect it; always False: it is gone. (True would say that it is still held.)"""
        subprocess.run(disconnect_command(self.path), check=False, stdin=subprocess.DEVNULL, stdout=2)
        return False

    def finish(self) -> None:
        """Wait until nbd-client has ended, or kill it."""
        try:
            self.server.wait(GONE_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait()


def available() -> bool:
    """Does this kernel have the client, and this system the program? Loads the module if need be."""
    if shutil.which("nbd-client") is None:
        return False
    if Path("/sys/module/nbd").exists():
        return True
    if shutil.which("modprobe") is None:
        return False
    return subprocess.run(["modprobe", "-q", "nbd"], check=False, stdout=2, stderr=2).returncode == 0


def connect_command(spec: DeviceSpec, device: str) -> list[str]:
    return [
        *("nbd-client", "-unix", str(spec.socket), device),
        *("-block-size", str(spec.sector_size_bytes), "-nonetlink", "-nofork", "-swap"),
    ]


def disconnect_command(device: str) -> list[str]:
    return ["nbd-client", "-d", device]


def free_devices(sys_block: Path) -> list[str]:
    """Names of those that nobody has connected, lowest number first."""
    names = sorted((path.name for path in sys_block.glob("nbd*") if path.name[3:].isdigit()), key=lambda n: int(n[3:]))
    return [name for name in names if not (sys_block / name / "pid").exists()]


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    parent = os.getpid()
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=2,  # our stdout is for reports
        preexec_fn=lambda: die_with_parent(signal.SIGKILL, parent),
    )


def _size_sectors(name: str) -> int:
    return int((SYS_BLOCK / name / "size").read_text(encoding="ascii"))
