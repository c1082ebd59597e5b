"""The side file: what v08 metadata has no room for. Losing it costs a question to the operator, never data."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from replication.protocol.errors import DiskFailure


class SideFile:
    """Fulfils the `Records` port of replication/executor.py."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> tuple[dict[str, Any], str]:
        """What was saved last, and a sentence for the log when that cannot be read: it counts as empty then."""
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}, ""
        except (OSError, ValueError) as error:
            return {}, f"{self.path} cannot be read ({error}): permits and hand-overs in it are void"
        return (record, "") if isinstance(record, dict) else ({}, f"{self.path} holds no record: it counts as empty")

    def save(self, record: dict[str, Any]) -> None:
        """Durable when it returns: the old content or the new one is there, whatever happens. Raises DiskFailure."""
        fresh = self.path.with_suffix(".new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, json.dumps(record, indent=1).encode() + b"\n")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            fresh.replace(self.path)
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise DiskFailure(str(self.path), f"cannot be written: {error.strerror}", "is its disk full?") from error
