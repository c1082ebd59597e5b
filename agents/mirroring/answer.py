"""How a call of mirroradm ended, by its exit code: those of drbdadm and drbdsetup."""

from __future__ import annotations

DONE, NOT_UP, STATE_REFUSED, NO_DISK, NO_GOOD_DATA, NO_ANSWER = 0, 10, 11, 16, 17, 20
REFUSALS = frozenset((STATE_REFUSED, NO_DISK, NO_GOOD_DATA))


class Answer:
    """`text` is what it printed: an error is `mirror NAME: fact; remedy`."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        self.text = text

    @property
    def is_done(self) -> bool:
        return self.code == DONE

    @property
    def is_refusal(self) -> bool:
        """mirrord says no, and why; asking again helps only when something has changed."""
        return self.code in REFUSALS

    @property
    def is_silence(self) -> bool:
        """A mirrord that does not answer, or mirroradm killed because it took too long."""
        return self.code == NO_ANSWER or self.code < 0

    @property
    def fact(self) -> str:
        """The last line, without the name of the program in front."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        if not lines:
            return f"mirroradm ended with {self.code}"
        return lines[-1].removeprefix("mirroradm: ")
