"""Parameters that describe the surroundings of a program: directory and files, environment, file mode mask."""

from __future__ import annotations

from agents.ocf.parameter import Parameter, Text
from agents.supervision.command_line import split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from agents.ocf.agent import Agent


class Path(Text):
    """An absolute path."""

    def convert(self, text: str) -> str:
        if text and not text.startswith("/"):
            raise ValueError("must be an absolute path")
        return super().convert(text)

    def constraint(self) -> str:
        return "Absolute path."


class FileMask(Parameter):
    """A file creation mask."""

    if TYPE_CHECKING:

        def __get__(self, instance: Agent | None, owner: type | None = None) -> int: ...

    def convert(self, text: str) -> int:
        if not (0 < len(text) <= 4 and set(text) <= set("01234567")):
            raise ValueError("must be an octal number such as 022")
        return int(text, 8)

    def constraint(self) -> str:
        return "Octal number."


class Assignments(Parameter):
    """Environment variables: NAME=value, separated by blanks."""

    if TYPE_CHECKING:

        def __get__(self, instance: Agent | None, owner: type | None = None) -> Mapping[str, str]: ...

    def convert(self, text: str) -> Mapping[str, str]:
        pairs = [word.partition("=") for word in split(text)[0]]
        if not all(name.isidentifier() and separator for name, separator, _ in pairs):
            raise ValueError("must be NAME=value pairs")
        return {name: value for name, _, value in pairs}

    def constraint(self) -> str:
        return "NAME=value pairs separated by blanks; '…', \"…\" and \\ quote, nothing is expanded."
