"""What laboratories leave on the machine: nothing, or this finds it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import psutil


def footprint(owner_pid: int) -> list[int]:
    """Every process below `owner_pid`, each before what it started."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):  # it may end while we look
        for child in psutil.Process(owner_pid).children():
            found += [child.pid, *footprint(child.pid)]
    return found


def leftovers() -> list[str]:
    """Namespaces with a name, loop devices, mounts, bridges and processes in this machine's own namespaces."""
    found = [f"namespace {line}" for line in _lines("ip", "netns", "list")]
    found += [f"loop {line}" for line in _lines("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE")]
    found += [f"bridge {line}" for line in _lines("ip", "-brief", "link", "show", "type", "bridge")]
    found += [f"veth {line}" for line in _lines("ip", "-brief", "link", "show", "type", "veth")]
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    found += [f"mount {line}" for line in mounts if " - fuse" in line or " - overlay" in line or "/run/lab" in line]
    own = os.readlink("/proc/self/ns/pid")
    for process in psutil.process_iter(["pid", "cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        try:
            foreign = os.readlink(f"/proc/{process.pid}/ns/pid") != own
        except OSError:
            continue
        if foreign or "vagrant.namespaces.supervisor" in words:
            found.append(f"process {process.pid} {words[:80]}")
    return found


def _lines(*argv: str) -> list[str]:
    output = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return [line for line in output.splitlines() if line.strip()]
