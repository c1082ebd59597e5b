"""The thread in which flushes wait. One runs at a time; those asked for meanwhile share the next."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


class Flusher:
    """`flushed(tokens)` or `failed(tokens, error)` is called from the thread.

    After a failure nothing is tried again: Linux drops the pages it could not write and reports it once, so a second
    fdatasync would succeed and mean nothing.
    """

    def __init__(
        self,
        descriptor: int,
        flushed: Callable[[list[int]], None],
        failed: Callable[[list[int], OSError], None],
    ) -> None:
        self.failure: OSError | None = None
        """Once set, `start` must not be called any more."""
        self._descriptor = descriptor
        self._flushed = flushed
        self._failed = failed
        self._waiting: list[int] = []
        self._ending = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="flusher", daemon=True)
        self._thread.start()

    def start(self, token: int) -> None:
        """Flush what is written by now."""
        assert self.failure is None
        with self._changed:
            self._waiting.append(token)
            self._changed.notify()

    def close(self, patience_s: float) -> bool:
        """End the thread; tokens that wait are not reported. False if the disk keeps it longer than that."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(patience_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._ending:
                    self._changed.wait()
                if self._ending:
                    return
                # taken before the call: whoever comes while it runs may have written after it began
                tokens, self._waiting = self._waiting, []
            try:
                os.fdatasync(self._descriptor)
            except OSError as error:
                self.failure = error
                self._failed(tokens, error)
                return
            self._flushed(tokens)
