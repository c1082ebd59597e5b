"""Tell the neighbours where the address is now: a first pair at once, the rest from a helper of its own session.

The helper outlives the agent, so it must be harmless: before each frame it looks whether the address is still here,
and `stop` ends it (known by pid, start time and boot id) before it removes the address.
"""

from __future__ import annotations

import posix
import time
from _socket import AF_PACKET, SOCK_CLOEXEC, SOCK_RAW, socket

from agents.address.arp import ETH_P_ARP, REPLY, REQUEST, announcement
from agents.address.model import Link
from agents.address.netlink import Rtnetlink
from agents.ocf.process import Process
from agents.ocf.signals import SIGALRM, SIGHUP, SIGINT, SIGKILL, SIGTERM, default_signal
from agents.ocf.state import Record

GONE_WAIT_S = 2.0


def announce_once(link: Link, ip: int) -> bool:
    """One request and one reply, broadcast; False where the interface does not speak ARP, is down or gone."""
    if not link.speaks_arp:
        return False
    try:
        wire = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0)
    except OSError:
        return False
    try:
        wire.bind((link.name, ETH_P_ARP))
        wire.send(announcement(REQUEST, link.mac, ip))
        wire.send(announcement(REPLY, link.mac, ip))
    except OSError:
        return False
    finally:
        wire.close()
    return True


def remember_link(record: Record, link: Link) -> None:
    """Note the link under which the address was announced last. Raises OSError when the record cannot be written."""
    record.write({"life": link.life})


def pauses(count: int, interval_ms: int, repeat_after_s: float) -> list[float]:
    """Seconds to wait before each pair after the first: the rest of the burst, then a whole second burst."""
    rest = [interval_ms / 1000] * max(0, count - 1)
    second = [repeat_after_s, *rest] if repeat_after_s > 0 and count > 0 else []
    return rest + second


def leave_helper(record: Record, link: Link, ip: int, waits: list[float]) -> None:
    """Fork the helper and record who it is. Raises OSError when the record cannot be written (the helper works on)."""
    if not waits or not link.speaks_arp:
        return
    pid = posix.fork()
    if pid == 0:
        _be_helper(link, ip, waits)
    helper = Process.of(pid)
    if helper is not None:
        record.write({"helper": str(helper)})


def _be_helper(link: Link, ip: int, waits: list[float]) -> None:
    """The rest of the helper's life; never returns. Timers are not inherited, handlers are."""
    try:
        for number in (SIGALRM, SIGHUP, SIGINT, SIGTERM):
            default_signal(number)
        posix.setsid()
        posix.chdir("/")
        null = posix.open("/dev/null", posix.O_RDWR)
        for descriptor in (0, 1, 2):
            posix.dup2(null, descriptor)
        posix.closerange(3, 256)  # whatever a shell or tester leaked to the agent and waits for
        for pause in waits:
            time.sleep(pause)
            with Rtnetlink() as kernel:
                here = any(one.local == ip and one.index == link.index for one in kernel.addresses())
                current = kernel.link(link.index) if here else None
            if current is None:
                break
            announce_once(current, ip)
    finally:
        posix._exit(0)


def end_helper(record: Record) -> None:
    """Kill the recorded helper, if it still is that process, and wait until it is gone."""
    helper = Process.parse(record.read().get("helper", ""))
    if helper is not None and helper.send(SIGKILL):
        end = time.monotonic() + GONE_WAIT_S
        while helper.alive() and time.monotonic() < end:
            time.sleep(0.001)
    record.remove()
