"""The daemon's event loop: which sockets can be read or written now, and what was asked to be done next.

One thread, level triggered epoll, plain callbacks. Other threads reach it only through `call_soon_threadsafe`.

To sleep and to be woken costs some 20 microseconds, as long as the peer's answer takes or a client needs for its next
request. So after a round in which something happened the loop looks again for a moment before it sleeps, as long as
that pays: each time it waited in vain, it lets twice as many rounds pass before it tries again.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

Callback = Callable[[], None]

_HANGUP = select.EPOLLHUP | select.EPOLLERR
_IN, _OUT, _GONE_OR_OUT = select.EPOLLIN, select.EPOLLOUT, _HANGUP | select.EPOLLOUT


MOMENT_S = 60e-6
VAIN_MAX = 64
"""So many rounds pass at most before it is tried again."""


class HasDescriptor(Protocol):
    """A socket, file, or anything else epoll can watch."""

    def fileno(self) -> int: ...


class _Watch:
    __slots__ = ("events", "on_hangup", "on_readable", "on_writable", "registered")

    def __init__(self, on_readable: Callback, on_writable: Callback | None, on_hangup: Callback | None) -> None:
        self.on_readable = on_readable
        self.on_writable = on_writable
        self.on_hangup = on_hangup
        self.events = 0
        self.registered = False


class Loop:
    """Watches descriptors. A callback may add and remove any of them, its own too.

    Callbacks can come for nothing: whoever is called must take a read or write that would block for an answer.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watches: dict[int, _Watch] = {}
        self._is_busy = False
        """Something happened in the last round."""
        self._vain = self._sleepy = 0
        self._soon: deque[Callback] = deque()
        self._from_threads: deque[Callback] = deque()
        self._alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._watches[self._alarm] = _Watch(self._hear_threads, None, None)
        self._want(self._alarm, select.EPOLLIN, True)

    def close(self) -> None:
        """Forget everything. Descriptors that were added stay open: they are their owners'."""
        self._watches.clear()
        self._epoll.close()
        os.close(self._alarm)

    def add(
        self,
        sock: HasDescriptor,
        on_readable: Callback,
        on_writable: Callback | None = None,
        on_hangup: Callback | None = None,
    ) -> None:
        """Watch it for reading.

        `on_hangup` is called when the other side is gone while neither reading nor writing is wanted, and must remove
        the descriptor. While either is wanted, its callback is called instead, and hears of it from its own call.
        """
        assert sock.fileno() not in self._watches, f"{sock} is watched already"
        self._watches[sock.fileno()] = _Watch(on_readable, on_writable, on_hangup)
        self._want(sock.fileno(), select.EPOLLIN, True)

    def want_read(self, sock: HasDescriptor, wanted: bool) -> None:
        self._want(sock.fileno(), select.EPOLLIN, wanted)

    def want_write(self, sock: HasDescriptor, wanted: bool) -> None:
        self._want(sock.fileno(), select.EPOLLOUT, wanted)

    def remove(self, sock: HasDescriptor) -> None:
        """Before it is closed. Nothing is called for it from now on."""
        watch = self._watches.pop(sock.fileno())
        if watch.registered:
            self._epoll.unregister(sock.fileno())
        watch.events, watch.on_hangup = 0, None  # it may stand in the list that run_once works through

    def call_soon(self, function: Callback) -> None:
        """Call it once, at the end of this round or the next, outside of whatever runs now."""
        self._soon.append(function)

    def call_soon_threadsafe(self, function: Callback) -> None:
        """The same from another thread; wakes the loop."""
        self._from_threads.append(function)
        os.eventfd_write(self._alarm, 1)

    def run_once(self, timeout_s: float) -> None:
        """Wait until something happens, at most so long (negative: without limit), and make all calls that are due."""
        soon = self._soon
        if soon:
            events = self._epoll.poll(0)
        else:
            events = self._look_for_a_moment() if self._is_busy and timeout_s else []
            if not events:
                events = self._epoll.poll(timeout_s)
        self._is_busy = bool(events)
        if len(events) == 1:
            descriptor, happened = events[0]
            watch = self._watches[descriptor]
            if happened == _IN and watch.events & _IN:
                watch.on_readable()
            else:
                self._dispatch(watch, happened)
        elif events:
            # looked up before the first call: a descriptor that a callback closes may be given out anew by the next
            for watch, happened in [(self._watches[descriptor], happened) for descriptor, happened in events]:
                self._dispatch(watch, happened)
        if soon:
            for _ in range(len(soon)):
                soon.popleft()()

    def _look_for_a_moment(self) -> list[tuple[int, int]]:
        """What happened, [] when nothing did before it is time to sleep. Whoever else wants the processor gets it."""
        if self._sleepy:
            self._sleepy -= 1
            return []
        poll, clock, give_way = self._epoll.poll, time.monotonic, os.sched_yield
        until = clock() + MOMENT_S
        while not (events := poll(0)):
            if clock() > until:
                self._sleepy = self._vain = min(2 * self._vain + 1, VAIN_MAX)
                return []
            give_way()
        self._vain = 0
        return events

    def _dispatch(self, watch: _Watch, happened: int) -> None:
        if watch.events & _IN and happened & (_IN | _HANGUP):
            watch.on_readable()
        if happened & _GONE_OR_OUT:
            if watch.events & _OUT and watch.on_writable:
                watch.on_writable()
            if happened & _HANGUP and not watch.events and watch.on_hangup:
                watch.on_hangup()

    def _hear_threads(self) -> None:
        os.eventfd_read(self._alarm)
        while self._from_threads:
            self._soon.append(self._from_threads.popleft())

    def _want(self, descriptor: int, event: int, wanted: bool) -> None:
        watch = self._watches[descriptor]
        events = watch.events | event if wanted else watch.events & ~event
        # epoll tells of a hang-up even where nothing is wanted, and again and again
        to_register = bool(events) or watch.on_hangup is not None
        if to_register and not watch.registered:
            self._epoll.register(descriptor, events)
        elif to_register and events != watch.events:
            self._epoll.modify(descriptor, events)
        elif watch.registered and not to_register:
            self._epoll.unregister(descriptor)
        watch.events, watch.registered = events, to_register
