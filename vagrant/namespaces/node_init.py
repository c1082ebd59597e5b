"""PID 1 of one node: makes its file system, waits for its cables, boots, and reaps for the rest of its life.

Run as `python3 -IS node_init.py` inside fresh network, mount, UTS, IPC and PID namespaces. Standard input brings one
line of JSON (a `NodeBoot`), then the line "go" once the cables are plugged in; standard output answers "mounted".

The node's root is an overlay: the machine's own files below, and above them a directory of the node's own, which holds
what the laboratory installed there and outlives a power cut. So a node may write
anywhere and the machine never notices.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import stat
import sys

TYPE_CHECKING = False  # typing itself would cost a fifth of the boot
if TYPE_CHECKING:
    from typing import Any

    NodeBoot = dict[str, Any]

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC = 1, 2, 4, 32, 4096, 16384
CHARACTER_DEVICES = {  # name -> (major, minor), Documentation/admin-guide/devices.txt
    "null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "kmsg": (1, 11),
    "tty": (5, 0), "fuse": (10, 229), "loop-control": (10, 237), "net/tun": (10, 200),
}  # fmt: skip
LOOP_MAJOR, LOOP_COUNT = 7, 128
CLEAN_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}

libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str | None, target: str, kind: str | None = None, flags: int = 0, options: str | None = None) -> None:
    """mount(2). Raises OSError that names the target."""
    arguments = [text.encode() if text is not None else None for text in (source, target, kind)]
    if libc.mount(*arguments, flags, options.encode() if options else None) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)


def make_root(boot: NodeBoot) -> None:
    """Assemble the overlay and step into it."""
    root, upper, work = boot["root"], boot["upper"], boot["work"]
    for path in (root, upper, work):
        os.makedirs(path, exist_ok=True)
    mount("overlay", root, "overlay", 0, f"lowerdir=/,upperdir={upper},workdir={work}")
    # an overlay does not show later changes of what lies below it: a checkout must be bound, not layered
    for path in boot["shared"]:
        os.makedirs(root + path, exist_ok=True)
        mount(path, root + path, None, MS_BIND | MS_REC)
        mount(None, root + path, None, MS_BIND | MS_REMOUNT | MS_RDONLY)
    for path, mode in (("/dev", 0o755), ("/run", 0o755), ("/tmp", 0o1777)):
        if any(shared == path or shared.startswith(path + "/") for shared in boot["shared"]):
            continue  # the checkout lies in there and must stay visible
        os.makedirs(root + path, exist_ok=True)
        mount("tmpfs", root + path, "tmpfs", MS_NOSUID, f"mode={mode:o}")
    for path in boot["sockets"]:  # the outlets of the laboratory: power switch, disk
        target = root + "/run/lab/" + os.path.basename(path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "w").close()
        mount(path, target, None, MS_BIND)
    make_devices(root + "/dev", boot.get("serial"))
    for kind, path in (("proc", "/proc"), ("sysfs", "/sys")):
        os.makedirs(root + path, exist_ok=True)
        mount(kind, root + path, kind, MS_NOSUID | MS_NODEV)
    # the kernel belongs to the machine: a cluster manager that panics its node must not restart everybody's
    for path in ("/proc/sysrq-trigger", "/proc/sys/kernel/sysrq"):
        if os.path.exists(root + path):
            mount(root + path, root + path, None, MS_BIND)
            mount(None, root + path, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)
    if os.path.isdir(root + "/sys/fs/fuse/connections"):
        mount("fusectl", root + "/sys/fs/fuse/connections", "fusectl")
    os.chroot(root)
    os.chdir("/")


def make_devices(dev: str, serial: dict[str, str] | None) -> None:
    os.umask(0)
    for name, (major, minor) in CHARACTER_DEVICES.items():
        path = os.path.join(dev, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(major, minor))
    for number in range(LOOP_COUNT):
        os.mknod(f"{dev}/loop{number}", 0o660 | stat.S_IFBLK, os.makedev(LOOP_MAJOR, number))
    for name, mode in (("pts", 0o755), ("shm", 0o1777), ("mirrorha", 0o755)):
        os.mkdir(f"{dev}/{name}", mode)
    mount("devpts", f"{dev}/pts", "devpts", MS_NOSUID, "newinstance,ptmxmode=0666,mode=0620")
    mount("tmpfs", f"{dev}/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    links = {"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
    for name, target in links.items():
        os.symlink(target, f"{dev}/{name}")
    os.umask(0o022)
    if serial is not None:
        target = dev + serial["device"].removeprefix("/dev")
        open(target, "w").close()
        mount(os.path.realpath(serial["link"]), target, None, MS_BIND)


def make_directories() -> None:
    """What the packages' tmpfiles would make at boot."""
    for path in (
        "/run/lock",
        "/run/crm",
        "/run/resource-agents",
        "/run/mirrorha",
        "/etc/mirrorha",
        "/var/lib/mirrorha",
    ):
        os.makedirs(path, exist_ok=True)
    try:
        import grp
        import pwd

        cluster = (pwd.getpwnam("hacluster").pw_uid, grp.getgrnam("haclient").gr_gid)
    except KeyError:
        return  # no cluster software installed: a client
    os.chown("/run/crm", *cluster)
    for name in ("cores", "cib", "pengine", "blackbox"):
        path = f"/var/lib/pacemaker/{name}"
        os.makedirs(path, exist_ok=True)
        os.chown(path, *cluster)
        os.chmod(path, 0o750)


def spawn(argv: list[str]) -> int:
    """Start a program in a session of its own with a clean environment: agents inherit whatever the daemons had."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        null = os.open("/dev/null", os.O_RDONLY)
        log = os.open("/var/log/boot.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.closerange(3, 64)
        os.execve(argv[0], argv, CLEAN_ENVIRONMENT)
    return pid


def main() -> None:
    boot = json.loads(sys.stdin.readline())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    hostname = boot["name"].encode()
    libc.sethostname(hostname, len(hostname))
    make_root(boot)
    make_directories()
    sys.stdout.write("mounted\n")
    sys.stdout.flush()
    if sys.stdin.readline().strip() != "go":
        sys.exit("the laboratory gave up before the cables were plugged in")
    for argv in boot["programs"]:
        spawn(argv)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            signal.sigwait([signal.SIGCHLD])


if __name__ == "__main__":
    main()
