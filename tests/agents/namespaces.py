"""Two hosts on a bridge, for tests of the real agents: alpha, beta and the hub between them.

Each is a network, mount and PID namespace held by one `cat` that ends when its standard input closes, so everything is
gone when the test process is, however it ended. Nothing appears in the root namespace; the host's /usr/lib/ocf gets the
agents as a read-only overlay in the namespaces only.

    alpha.eth0 10.77.0.1/24 ─┐                     ┌─ beta.eth0 10.77.0.2/24
                             ├─ hub: br0, br1 ─────┤
    alpha.eth1 (no address) ─┘                     └─ beta.eth1 (no address)
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.address.arp import Arp, decode
from agents.address.model import parse_ipv4

OCF = "/usr/lib/ocf"
AGENT = f"{OCF}/resource.d/mirrorha"
STATE = "/run/resource-agents"
CLONE_NEWNET = 0x40000000
SO_TIMESTAMPNS = 35
ETH_P_ALL = 3  # a socket for ARP alone sees neither outgoing frames nor those of a bridge port
LIMIT_S = 30
LIBC = ctypes.CDLL(None, use_errno=True)

BASE = {"alpha": "10.77.0.1", "beta": "10.77.0.2"}


@dataclass(frozen=True)
class Ran:
    """How an agent ended: exit code, exit reason ("" if none), all of standard error, wall time."""

    code: int
    reason: str
    errors: str
    output: str
    seconds: float


class Host:
    """One namespace set, known by the process that holds it."""

    def __init__(self, name: str, holder: subprocess.Popen[str], pid: int) -> None:
        self.name = name
        self.holder = holder
        self.pid = pid

    def enter(self, *arguments: str) -> list[str]:
        """The command line that runs a program inside."""
        return ["nsenter", "-t", str(self.pid), "-n", "-m", "-p", "--", *arguments]

    def run(self, *arguments: str, check: bool = True, stdin: str = "") -> str:
        done = subprocess.run(
            self.enter(*arguments), input=stdin, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        assert not check or done.returncode == 0, f"{self.name}: {arguments}: {done.stderr}"
        return done.stdout

    def ip(self, *lines: str) -> None:
        """Several `ip` commands at once."""
        net = f"--net=/proc/{self.pid}/ns/net"
        command = ["nsenter", net, "ip", "-batch", "-"]
        done = subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{self.name}: {lines}: {done.stderr}"

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        shown = self.run("ip", "-json", *arguments, check=False)
        result: list[dict[str, Any]] = json.loads(shown) if shown.strip() else []
        return result

    def addresses(self, nic: str = "eth0") -> list[str]:
        """`10.77.0.1/24`, in the kernel's order; [] when the interface is gone."""
        entries = self.json("-4", "address", "show", "dev", nic)
        return [f"{one['local']}/{one['prefixlen']}" for entry in entries for one in entry.get("addr_info", [])]

    def routes(self, nic: str = "eth0") -> list[str]:
        """Routes of all tables but the local one, in a form that can be compared."""
        lines = self.run("ip", "-4", "route", "show", "table", "all", "dev", nic, check=False).splitlines()
        return sorted(" ".join(line.split()) for line in lines if not line.startswith(("local", "broadcast")))

    def setting(self, name: str, value: str | None = None, nic: str = "eth0") -> str:
        path = f"/proc/sys/net/ipv4/conf/{nic}/{name}"
        return self.run("sh", "-c", f"cat {path}; {f'echo {value} >{path}' if value else ':'}").strip()

    def command(
        self,
        action: str,
        *,
        agent: str = "VirtualIP",
        instance: str = "vip",
        level: int = 0,
        interval_ms: int = 10_000,
        timeout_ms: int = 20_000,
        user: str = "",
        trace: tuple[str, ...] = (),
        **parameters: str,
    ) -> list[str]:
        """The command line of one agent action, in an environment as the executor makes it."""
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C",
            "OCF_ROOT": OCF,
            "OCF_RESOURCE_INSTANCE": instance,
            "OCF_RESKEY_CRM_meta_timeout": str(timeout_ms),
            "OCF_EXIT_REASON_PREFIX": "ocf-exit-reason:",
            **{f"OCF_RESKEY_{name}": value for name, value in parameters.items()},
        }
        if action == "monitor" and interval_ms:
            environment["OCF_RESKEY_CRM_meta_interval"] = str(interval_ms)
        if level:
            environment["OCF_CHECK_LEVEL"] = str(level)
        words = ["env", "-i", *(f"{name}={value}" for name, value in environment.items())]
        if user:
            words = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *words]
        path = agent if agent.startswith("/") else f"{AGENT}/{agent}"
        return self.enter(*words, *trace, path, action)

    def agent(self, action: str, **options: Any) -> Ran:
        """Run one agent action to its end."""
        begin = time.monotonic()
        done = subprocess.run(
            self.command(action, **options),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        seconds = time.monotonic() - begin
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ocf-exit-reason:")]
        assert len(reasons) <= 1, f"several exit reasons: {reasons}"
        reason = reasons[0].removeprefix("ocf-exit-reason:") if reasons else ""
        return Ran(done.returncode, reason, done.stderr, done.stdout, seconds)


@dataclass
class Network:
    hub: Host
    alpha: Host
    beta: Host

    def reset(self) -> None:
        """As it was in the beginning: for the start of each test, in about 50 ms."""
        for host in (self.alpha, self.beta):
            host.run("sh", "-c", f"rm -rf {STATE}/*")
            self.wire(host)  # a helper left by the last test finds its interface gone and ends

    def wire(self, host: Host) -> None:
        """New cables and addresses for one host; deleting the hub's ends takes the host's interfaces along."""
        existing = {link["ifname"] for link in self.hub.json("link")}
        old = [f"link del {host.name}{n}" for n in (0, 1) if f"{host.name}{n}" in existing]
        new = []
        for n in (0, 1):
            new += [
                f"link add {host.name}{n} type veth peer name eth{n} netns {host.pid}",
                f"link set {host.name}{n} master br{n} up",
            ]
        self.hub.ip(*old, *new)
        host.ip(
            f"address add {BASE[host.name]}/24 brd + dev eth0",
            "link set eth0 up",
            "link set eth1 up",
            "route add default via 10.77.0.254 dev eth0",
            "route add 10.99.0.0/16 via 10.77.0.250 dev eth0 metric 50",
        )


def hold(name: str, root: Path) -> Host:
    """Start one holder. `root` is where the agents were installed to."""
    ready = (
        f"mount -t tmpfs tmpfs /run && mkdir -p {STATE} && chmod 1755 {STATE} && ip link set lo up && "
        f"mount -t overlay overlay -o lowerdir={root}{OCF}:{OCF} {OCF} && echo ready && exec cat"
    )
    holder = subprocess.Popen(
        ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", ready],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return Host(name, holder, 0)


def wait_ready(host: Host) -> None:
    assert host.holder.stdout is not None
    assert host.holder.stdout.readline() == "ready\n", f"namespaces of {host.name} need root"
    children = Path(f"/proc/{host.holder.pid}/task/{host.holder.pid}/children").read_text().split()
    host.pid = int(children[0])


@contextmanager
def network(root: Path) -> Iterator[Network]:
    """The three namespaces, wired; gone afterwards."""
    hosts = [hold(name, root) for name in ("hub", "alpha", "beta")]
    try:
        for host in hosts:
            wait_ready(host)
        hub, alpha, beta = hosts
        bridges = [f"link add br{n} type bridge" for n in (0, 1)] + [f"link set br{n} up" for n in (0, 1)]
        hub.ip(*bridges)
        made = Network(hub, alpha, beta)
        made.wire(alpha)
        made.wire(beta)
        yield made
    finally:
        for host in hosts:
            host.holder.kill()
            host.holder.communicate()


def inside(host: Host, work: Callable[[], socket.socket]) -> socket.socket:
    """Run `work` in a thread that joined the host's network namespace; the socket it makes stays there."""
    made: list[socket.socket] = []

    def enter() -> None:
        with open(f"/proc/{host.pid}/ns/net") as namespace:
            assert LIBC.setns(namespace.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        made.append(work())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return made[0]


class Listener:
    """All ARP frames that pass an interface, with the kernel's time stamps."""

    def __init__(self, host: Host, nic: str) -> None:
        def open_socket() -> socket.socket:
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            wire.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            wire.bind((nic, ETH_P_ALL))
            return wire

        self.wire = inside(host, open_socket)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *error: object) -> None:
        self.wire.close()

    def next(self, limit_s: float) -> tuple[float, Arp] | None:
        """Time (seconds, as time.time()) and frame; None when nothing came within `limit_s`."""
        end = time.monotonic() + limit_s
        while (left := end - time.monotonic()) > 0:
            self.wire.settimeout(left)
            try:
                frame, extra, _, _ = self.wire.recvmsg(2048, 256)
            except TimeoutError:
                return None
            except OSError as error:
                if error.errno == errno.ENETDOWN:  # said once, then the socket goes on
                    continue
                raise
            stamp = next(data for level, kind, data in extra if kind == SO_TIMESTAMPNS)
            seconds, nanoseconds = struct.unpack("@ll", stamp)
            arp = decode(frame)
            if arp is not None:
                return seconds + nanoseconds / 1e9, arp
        return None

    def announcements(self, ip: str, count: int, limit_s: float = 10) -> list[tuple[float, Arp]]:
        """The next `count` gratuitous frames for `ip`, or fewer when the time is over."""
        wanted = parse_ipv4(ip)
        found: list[tuple[float, Arp]] = []
        end = time.monotonic() + limit_s
        while len(found) < count and (left := end - time.monotonic()) > 0:
            seen = self.next(left)
            if seen is not None and seen[1].sender_ip == wanted == seen[1].target_ip:
                found.append(seen)
        return found
