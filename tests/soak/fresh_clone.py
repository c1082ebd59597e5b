"""A fresh clone in an empty Debian: nothing is typed but `make test` and `make demo`.

debootstrap makes the root; the clone goes into it; the two commands run with it as "/". Certificates and package
settings of this machine's network are the site's affair and are copied in, as an admin would.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.soak.evidence import PROJECT, Case, Figures

ROOT = PROJECT / "build" / "empty-debian"
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
SITE_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/apt/sources.list.d/debian.sources",
)
SITE_VARIABLES = ("PIP_CERT", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "http_proxy", "https_proxy", "no_proxy")
INCLUDE = "make,git,ca-certificates,python3"
COMMANDS = ("make test", "make demo")
COMMAND_TIMEOUT_S = 3000.0


def bootstrap() -> float:
    start = time.monotonic()
    tear_down()
    if shutil.which("debootstrap") is None:
        raise AssertionError("debootstrap is missing; apt-get install debootstrap")
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={INCLUDE}", "bookworm", str(ROOT), MIRROR], check=True
    )
    for name in SITE_FILES:
        if Path(name).exists():
            shutil.copy(name, ROOT / name.lstrip("/"))
    sources = ROOT / "etc/apt/sources.list"
    if (ROOT / "etc/apt/sources.list.d/debian.sources").exists():
        sources.unlink(missing_ok=True)
    subprocess.run(["git", "clone", "--quiet", str(PROJECT), str(ROOT / "root/mirrorha")], check=True)
    return time.monotonic() - start


def run_in_root(command: str) -> tuple[int, str, float]:
    """One command in the clone, in mount and PID namespaces of its own: whatever it leaves dies with them.

    The new root becomes "/" by pivot_root, as in a container: below a plain chroot "/" is no mount point, and unshare
    refuses to make it private.
    """
    enter = (
        f"mount --bind {ROOT} {ROOT} && mount --rbind /dev {ROOT}/dev && mount -t proc proc {ROOT}/proc && "
        f"mount -t sysfs sysfs {ROOT}/sys && mount -t tmpfs tmpfs {ROOT}/run && cd {ROOT} && pivot_root . mnt && "
        f"umount -l /mnt && cd /root/mirrorha && exec {command}"
    )
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
    environment |= {name: os.environ[name] for name in SITE_VARIABLES if name in os.environ}
    start = time.monotonic()
    result = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", enter],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=COMMAND_TIMEOUT_S,
    )  # fmt: skip
    return result.returncode, result.stdout + result.stderr, time.monotonic() - start


def tear_down() -> None:
    shutil.rmtree(ROOT, ignore_errors=True)


def run(first: int, count: int) -> Iterator[Figures]:
    figures: Figures = {"bootstrap_s": round(bootstrap(), 1)}
    for command in COMMANDS:
        code, output, seconds = run_in_root(command)
        log = PROJECT / "build" / f"fresh-clone-{command.split()[-1]}.log"
        log.write_text(output, encoding="utf-8")
        assert code == 0, f"{command} ended with {code}; its output is in {log}:\n{output[-2000:]}"
        figures[f"{command.split()[-1]}_s"] = round(seconds, 1)
        passed = re.search(r"(\d+) passed", output)
        if passed:
            figures["passed"] = int(passed.group(1))
    tear_down()
    yield figures


def summary(figures: list[Figures]) -> Figures:
    return dict(figures[-1])


CASE = Case(
    name="fresh-clone",
    proves="In an empty Debian root a fresh clone passes `make test` and `make demo`, with nothing else typed.",
    covers=("Makefile", "setup.sh", "setup.cfg", "agents/**/*.py", "vagrant/**/*", "tests/**/*.py"),
    rounds=1,
    run=run,
    summary=summary,
)
