"""The grammar of drbd.conf(5): text -> tree of sections and statements, every word with its file and line.

    file      = { entry }
    entry     = statement | section | "skip" section | "include" glob ";"      (include: at top level only)
    statement = word { word } ";"
    section   = word { word } "{" { entry } "}"
    word      = letters, digits, / . _ -          up to 128
              | "..." on one line, with \\" and \\\\     up to 255
    comment   = from # to the end of the line

What the words mean is not known here; see replication.config.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from replication.errors import ConfigError

WORD_LENGTH_MAX = 128
STRING_LENGTH_MAX = 255
INCLUDE_DEPTH_MAX = 10
INCLUDED_FILES_MAX = 1000
FILE_BYTES_MAX = 1024 * 1024
SECTION_DEPTH_MAX = 16

TOKEN = re.compile(
    r"""(?P<blank>[ \t\r\f\v]+|\#[^\n]*)
      | (?P<newline>\n)
      | (?P<string>"(?:[^"\\\n]|\\[^\n])*")
      | (?P<word>[A-Za-z0-9/._-]+)
      | (?P<mark>[{};:%\[\]])
    """,
    re.VERBOSE,
)
ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True)
class Word:
    text: str
    file: Path
    line: int
    quoted: bool = False
    mark: bool = False
    """One of { } ; and of : [ ] %, of which addresses are made."""

    def error(self, fact: str, remedy: str = "") -> ConfigError:
        """What is wrong here, to be raised."""
        return ConfigError(self.file, self.line, fact, remedy)

    def is_mark(self, text: str) -> bool:
        return self.mark and self.text == text


@dataclass(frozen=True)
class Statement:
    """`name value...;`"""

    words: tuple[Word, ...]

    @property
    def name(self) -> str:
        return self.words[0].text

    @property
    def values(self) -> tuple[Word, ...]:
        return self.words[1:]

    def error(self, fact: str, remedy: str = "") -> ConfigError:
        return self.words[0].error(fact, remedy)


@dataclass(frozen=True)
class Section:
    """`name argument... { entries }`"""

    words: tuple[Word, ...]
    entries: tuple[Statement | Section, ...]

    @property
    def name(self) -> str:
        return self.words[0].text

    @property
    def values(self) -> tuple[Word, ...]:
        return self.words[1:]

    def error(self, fact: str, remedy: str = "") -> ConfigError:
        return self.words[0].error(fact, remedy)


Entry = Statement | Section


def quote(text: str) -> str:
    """`text` as a quoted string of this grammar; it must not hold a line break."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def read(path: Path) -> str:
    """The text of a configuration file. Raises ConfigError when it cannot be read or is no text."""
    try:
        if not path.is_file():
            fact = "is not a regular file" if path.exists() else "does not exist"
            raise ConfigError(path, None, fact, "name a file in the grammar of drbd.conf")
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ConfigError(path, None, f"is larger than {FILE_BYTES_MAX} bytes")
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(path, None, f"is not UTF-8 text (byte {error.start})") from error
    except (OSError, ValueError) as error:
        raise ConfigError(path, None, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def parse(text: str, file: Path) -> list[Entry]:
    """The entries of `text`, those of included files in their place. `file` is for messages and relative includes.

    Raises ConfigError, and nothing else, whatever the text.
    """
    return _Parser(_Budget()).file(text, file, depth=0)


@dataclass
class _Budget:
    """Files still to be included: a pattern that matches its own directory must end."""

    files_left: int = INCLUDED_FILES_MAX


def _words(text: str, file: Path) -> Iterator[Word]:
    line, position = 1, 0
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None:
            if text[position] == '"':
                raise ConfigError(file, line, "string does not end on its line", 'close it with "')
            shown = ascii(text[position])
            raise ConfigError(file, line, f"unexpected character {shown}", 'put the value in double quotes: "..."')
        position = match.end()
        found = match.group()
        if match.lastgroup == "newline":
            line += 1
        elif match.lastgroup == "mark":
            yield Word(found, file, line, mark=True)
        elif match.lastgroup == "word":
            if len(found) > WORD_LENGTH_MAX:
                remedy = "put it in double quotes" if len(found) <= STRING_LENGTH_MAX else ""
                raise ConfigError(file, line, f"word of more than {WORD_LENGTH_MAX} characters", remedy)
            yield Word(found, file, line)
        elif match.lastgroup == "string":
            content = ESCAPED.sub(r"\1", found[1:-1])
            if len(content.encode("utf-8", "surrogatepass")) > STRING_LENGTH_MAX:
                raise ConfigError(file, line, f"string of more than {STRING_LENGTH_MAX} bytes")
            if not content.isprintable() and not content.replace("\t", " ").isprintable():
                raise ConfigError(file, line, "string holds a control character")
            yield Word(content, file, line, quoted=True)


class _Parser:
    def __init__(self, budget: _Budget) -> None:
        self.budget = budget

    def file(self, text: str, file: Path, depth: int) -> list[Entry]:
        words = _words(text, file)
        entries: list[Entry] = []
        while (word := next(words, None)) is not None:
            entry = self.entry(word, words, depth=0)
            if isinstance(entry, Statement) and entry.name == "include":
                entries += self.include(entry, depth)
            elif entry is not None:
                entries.append(entry)
        return entries

    def include(self, statement: Statement, depth: int) -> list[Entry]:
        if len(statement.values) != 1:
            raise statement.error("include takes one pattern", 'write include "PATTERN";')
        if depth == INCLUDE_DEPTH_MAX:
            raise statement.error(f"include nested more than {INCLUDE_DEPTH_MAX} deep", "does a file include itself?")
        pattern = statement.values[0]
        here = pattern.file.parent
        try:
            matches = sorted(glob.glob(str(here / pattern.text)))
        except (OSError, ValueError, re.error) as error:
            raise pattern.error(f'include "{pattern.text}": {error}') from error
        if not matches and not glob.has_magic(pattern.text):
            raise pattern.error(f'included file "{pattern.text}" does not exist')
        entries: list[Entry] = []
        for match in matches:
            if self.budget.files_left == 0:
                raise statement.error(f"more than {INCLUDED_FILES_MAX} files included", "does a file include itself?")
            self.budget.files_left -= 1
            entries += self.file(read(Path(match)), Path(match), depth + 1)
        return entries

    def entry(self, first: Word, words: Iterator[Word], depth: int) -> Entry | None:
        """The entry that begins with `first`; None when it is to be skipped."""
        if first.mark or first.quoted:
            remedy = f'a "{first.text}" too many?' if first.text in (";", "}") else ""
            raise first.error(f'expected the name of an option or section, not "{first.text}"', remedy)
        if first.text == "skip":
            self.skip(first, words)
            return None
        gathered = [first]
        for word in words:
            if word.is_mark(";"):
                return Statement(tuple(gathered))
            if word.is_mark("{"):
                return Section(tuple(gathered), tuple(self.entries(first, words, depth + 1)))
            if word.is_mark("}"):
                raise gathered[-1].error(f'missing ";" after "{gathered[-1].text}"')
            gathered.append(word)
        raise gathered[-1].error(f'file ends after "{gathered[-1].text}"', 'a missing ";"?')

    def entries(self, opened_by: Word, words: Iterator[Word], depth: int) -> Iterator[Entry]:
        if depth > SECTION_DEPTH_MAX:
            raise opened_by.error(f"sections nested more than {SECTION_DEPTH_MAX} deep")
        for word in words:
            if word.is_mark("}"):
                return
            entry = self.entry(word, words, depth)
            if isinstance(entry, Statement) and entry.name == "include":
                raise word.error("include stands inside a section", "move it to the top level of the file")
            if entry is not None:
                yield entry
        raise opened_by.error(f'section "{opened_by.text}" is not closed', 'a missing "}"?')

    def skip(self, first: Word, words: Iterator[Word]) -> None:
        depth = 0
        for word in words:
            if word.is_mark("{"):
                depth += 1
            elif word.is_mark("}"):
                depth -= 1
                if depth == 0:
                    return
                if depth < 0:
                    break
            elif word.is_mark(";") and depth == 0:
                raise first.error("skip stands before a statement", "it disables sections only; comment the line out")
        raise first.error("skip is not followed by a complete section")
