"""How a stop divides its time: asking, SIGTERM, SIGKILL. Pure."""

from __future__ import annotations

TERM_SHARE = 2 / 3
FAST_STOP_S = 6.0
RESEND_S = 1.0  # a process that forks while it is asked leaves children that were not asked

ASK, KILL, GIVE_UP = "ask", "kill", "give up"


class Schedule:
    """Times in seconds since the stop began: SIGTERM until `kill_at_s`, SIGKILL until `end_at_s`."""

    def __init__(self, limit_s: float, *, is_fast: bool) -> None:
        self.end_at_s = min(limit_s, FAST_STOP_S) if is_fast else limit_s
        self.kill_at_s = self.end_at_s * TERM_SHARE

    def stage(self, passed_s: float) -> str:
        """What to do with those who still hold the file system: ASK, KILL or GIVE_UP."""
        if passed_s >= self.end_at_s:
            return GIVE_UP
        return KILL if passed_s >= self.kill_at_s else ASK

    def pause_s(self, passed_s: float) -> float:
        """How long to wait for them to end before looking again."""
        next_at_s = self.kill_at_s if passed_s < self.kill_at_s else self.end_at_s
        return max(0.0, min(RESEND_S, next_at_s - passed_s))
