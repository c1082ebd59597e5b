"""testinfra's way into a node of the laboratory, so that acceptance tests need not know what a node is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from testinfra.backend.base import BaseBackend, CommandResult


class NsenterBackend(BaseBackend):  # type: ignore[misc]  # testinfra ships no types
    """Runs each command by nsenter. `enter` gives the words in front, asked anew since a power cycle changes them."""

    NAME = "nsenter"

    def __init__(self, enter: Callable[[], list[str]], node: str, *args: Any, **kwargs: Any) -> None:
        self.enter = enter
        super().__init__(node, *args, **kwargs)

    def run(self, command: str, *args: str, **kwargs: Any) -> CommandResult:
        words = [
            *self.enter(),
            "env",
            "-i",
            "PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME=/root",
            "LANG=C.UTF-8",
        ]
        placeholders = " ".join(["%s"] * len(words))
        return self.run_local(f"{placeholders} sh -c %s", *words, self.get_command(command, *args))
