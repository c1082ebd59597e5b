"""Errors of the mirror outside the protocol, and those of the protocol, so that commands need one import.

MirrorError          object, fact, remedy (replication.protocol.errors)
  ConfigError        a file says what cannot be: file and line, what is wrong, what was perhaps meant
  Unavailable        the daemon of this resource does not answer
"""

from __future__ import annotations

from pathlib import Path

from replication.protocol.errors import DiskFailure, MetadataError, MirrorError, PeerError, Refusal

__all__ = ["ConfigError", "DiskFailure", "MetadataError", "MirrorError", "PeerError", "Refusal", "Unavailable"]


class ConfigError(MirrorError):
    """What stands in `file`, at `line` (from 1; None: the file as a whole), cannot be used; nothing was changed."""

    def __init__(self, file: Path, line: int | None, fact: str, remedy: str = "") -> None:
        super().__init__(f"{file} line {line}" if line is not None else str(file), fact, remedy)
        self.file = file
        self.line = line


class Unavailable(MirrorError):
    """Nobody answers on the control socket of this resource, or not in time."""
