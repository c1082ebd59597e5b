"""The few signal calls an agent needs, from the C module: `import signal` costs 5 ms because of its enums."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # not in typeshed; the public twin is `signal`

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

SIGHUP: int = int(_signal.SIGHUP)
SIGINT: int = int(_signal.SIGINT)
SIGKILL: int = int(_signal.SIGKILL)
SIGPIPE: int = int(_signal.SIGPIPE)
SIGALRM: int = int(_signal.SIGALRM)
SIGTERM: int = int(_signal.SIGTERM)
SIGCONT: int = int(_signal.SIGCONT)
DEFAULT: int = int(_signal.SIG_DFL)


def pidfd_send_signal(descriptor: int, signal_number: int) -> None:
    """Raises ProcessLookupError when the process has ended."""
    _signal.pidfd_send_signal(descriptor, signal_number)


def on_signal(signal_number: int, handler: Callable[[int, FrameType | None], None]) -> None:
    _signal.signal(signal_number, handler)


def default_signal(signal_number: int) -> None:
    _signal.signal(signal_number, _signal.SIG_DFL)


def alarm_in(seconds: float) -> None:
    """One SIGALRM after `seconds`; 0 cancels it."""
    _signal.setitimer(_signal.ITIMER_REAL, seconds)


def accept_all_signals() -> None:
    """For a child before exec: no signal ignored (Python ignores SIGPIPE and SIGXFSZ), caught or blocked."""
    for number in range(1, int(_signal.SIGSYS) + 1):
        if number not in (SIGKILL, int(_signal.SIGSTOP)):
            _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
