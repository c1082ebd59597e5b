"""Errors of the mirror. They travel as data (object, fact, remedy); only commands make prose of them.

MirrorError          object, fact, remedy
  PeerError          the peer sent what the protocol forbids: its link is dropped, we go on
  MetadataError      what stands on the disk is not ours, or damaged: nothing is written
  Refusal            the operator asked for what would lose data or cannot be: said, nothing changed
  DiskFailure        the backing device failed a read, write or flush: it is detached
An AssertionError is a bug of ours and stops the process.
"""

from __future__ import annotations


class MirrorError(Exception):
    """`subject` is the object ("mirror r0"), `fact` what is so, `remedy` what to do."""

    def __init__(self, subject: str, fact: str, remedy: str = "") -> None:
        super().__init__(f"{subject}: {fact}" + (f"; {remedy}" if remedy else ""))
        self.subject = subject
        self.fact = fact
        self.remedy = remedy


class PeerError(MirrorError):
    """The link must go. `for_good` when trying again cannot help: the connection becomes StandAlone."""

    def __init__(self, fact: str, remedy: str = "", *, for_good: bool = False) -> None:
        super().__init__("peer", fact, remedy)
        self.for_good = for_good


class MetadataError(MirrorError):
    """The metadata area does not hold what it should."""


class Refusal(MirrorError):
    """Asked for, not done. `code` is the exit code that drbdsetup gives for it."""

    def __init__(self, subject: str, fact: str, remedy: str = "", *, code: int = 11) -> None:
        super().__init__(subject, fact, remedy)
        self.code = code


class DiskFailure(MirrorError):
    """An OSError of the backing device, with what was being done."""
