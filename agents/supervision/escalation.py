"""How a stop divides its time: stop script, stop signal, SIGKILL. Pure.

The stop script may use two thirds of the operation's time-out. What must still happen after it fits into our own
deadline (80 %), so both later stages get a small share reserved: a KILL that comes too late is a fenced node.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C module behind `signal`

from agents.ocf.parameter import Parameter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agents.ocf.agent import Agent

SCRIPT_SHARE = 2 / 3  # of the operation's time-out
SIGNAL_SHARE = 2 / 3
RESERVE_SHARE = 1 / 16  # of the time left when the stop begins, for each stage that is still to come


class Escalation:
    """Limits in seconds. What the script does not use, the signal may; what the signal does not use, the KILL may."""

    def __init__(self, script_s: float, signal_s: float, kill_s: float) -> None:
        self.script_s = script_s
        self.signal_s = signal_s
        self.kill_s = kill_s

    def __repr__(self) -> str:
        return f"Escalation(script {self.script_s:g} s, signal {self.signal_s:g} s, kill {self.kill_s:g} s)"


def plan(timeout_s: float, left_s: float, stop_wait_s: float, kill_wait_s: float) -> Escalation:
    """For an operation with this time-out that may still use `left_s` seconds.

    stop_wait_s   how long the stop signal may take; 0 = two thirds of the time-out
    kill_wait_s   how long to wait for the processes to vanish after SIGKILL
    """
    signal_s = stop_wait_s or timeout_s * SIGNAL_SHARE
    reserve = left_s * RESERVE_SHARE
    kill_reserve, signal_reserve = min(kill_wait_s, reserve), min(signal_s, reserve)
    return Escalation(
        script_s=max(0.0, min(timeout_s * SCRIPT_SHARE, left_s - kill_reserve - signal_reserve)),
        signal_s=signal_s,
        kill_s=kill_wait_s,
    )


def signal_limit(escalation: Escalation, left_s: float) -> float:
    """How long to wait for the stop signal when `left_s` seconds remain: SIGKILL keeps its share."""
    return max(0.0, min(escalation.signal_s, left_s - min(escalation.kill_s, left_s * RESERVE_SHARE * 2)))


class SignalName(Parameter):
    """A signal by name, with or without SIG, or by number."""

    if TYPE_CHECKING:

        def __get__(self, instance: Agent | None, owner: type | None = None) -> int: ...

    def convert(self, text: str) -> int:
        word = text.upper().removeprefix("SIG")
        number = int(word) if word.isascii() and word.isdigit() else int(getattr(_signal, f"SIG{word}", 0))
        if not (word.isalnum() and 1 <= number < int(_signal.NSIG)):
            raise ValueError("must be a signal such as TERM, INT, QUIT or 15")
        return number

    def constraint(self) -> str:
        return "Name such as TERM, INT, QUIT, or number."
