"""The text of a command -> its arguments, without a shell where none is needed.

Blanks separate arguments. '…' takes everything literally; inside "…" a backslash quotes the characters " and \\;
outside quotes it quotes any character. A text that only a shell understands (variables, pipes, redirections, several
commands, patterns, an assignment in front, a leading ~) is handed to /bin/sh -c whole.
"""

from __future__ import annotations

from agents.ocf.parameter import Parameter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agents.ocf.agent import Agent

SHELL = "/bin/sh"
ANYWHERE = "|&;<>()$`*?["
AT_WORD_START = "~#"
INSIDE_DOUBLE_QUOTES = "$`"


class Invocation:
    """What to execute: `arguments[0]` is the program. False when there is nothing to execute."""

    def __init__(self, arguments: tuple[str, ...], *, uses_shell: bool = False) -> None:
        self.arguments = arguments
        self.uses_shell = uses_shell

    def __bool__(self) -> bool:
        return bool(self.arguments)


NOTHING = Invocation(())


def parse(text: str) -> Invocation:
    """Raises ValueError when a quotation mark is not closed or the text ends in a backslash."""
    words, needs_shell = split(text)
    first = words[0] if words else ""
    name, assignment, _ = first.partition("=")
    if needs_shell or first == "!" or (assignment and name.isidentifier()):
        return Invocation((SHELL, "-c", text), uses_shell=True)
    return Invocation(tuple(words))


def split(text: str) -> tuple[list[str], bool]:
    """The words, and whether some character means something to a shell only."""
    words: list[str] = []
    word: list[str] | None = None
    quote = ""
    needs_shell = False
    characters = iter(text)
    for character in characters:
        if quote == "'":
            if character == quote:
                quote = ""
            elif word is not None:
                word.append(character)
            continue
        if character.isspace() and not quote:
            if word is not None:
                words.append("".join(word))
            word = None
            continue
        at_start = word is None
        word = [] if word is None else word
        if character == quote:
            quote = ""
        elif character in "'\"" and not quote:
            quote = character
        elif character == "\\":
            following = next(characters, "")
            if not following:
                raise ValueError("must not end in a backslash")
            word.append(following if not quote or following in '"\\$`' else "\\" + following)
        else:
            special = INSIDE_DOUBLE_QUOTES if quote else ANYWHERE + (AT_WORD_START if at_start else "")
            needs_shell = needs_shell or character in special
            word.append(character)
    if quote:
        raise ValueError(f"must have its quotation mark {quote} closed")
    if word is not None:
        words.append("".join(word))
    return words, needs_shell


class CommandLine(Parameter):
    """A program with arguments. `name` is for a parameter whose name the attribute cannot have."""

    def __init__(self, text: str, more: str, *, name: str = "", reloadable: bool = False) -> None:
        super().__init__(text, more, reloadable=reloadable)
        self.name = name

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = self.name or name

    if TYPE_CHECKING:

        def __get__(self, instance: Agent | None, owner: type | None = None) -> Invocation: ...

    def convert(self, text: str) -> Invocation:
        return parse(text)

    def absent(self) -> Invocation:
        return NOTHING

    def constraint(self) -> str:
        return (
            "Program and arguments, separated by blanks; '…', \"…\" and \\ quote. A shell runs it only if it uses "
            "variables, pipes, redirections, several commands, patterns or a leading assignment."
        )
