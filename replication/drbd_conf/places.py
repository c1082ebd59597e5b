"""What may stand where in a configuration file, and how often: checks that several sections share."""

from __future__ import annotations

import re

from replication.drbd_conf.grammar import Entry, Section, Statement
from replication.resource import VOLUME

ONE_VOLUME = f"this version mirrors one volume per resource, volume {VOLUME}"


class Once:
    """What may stand once at its level."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, bool], Entry] = {}

    def check(self, entry: Entry) -> None:
        """Raises ConfigError when a section or statement of this name was checked before."""
        name = "meta-disk" if entry.name == "flexible-meta-disk" else entry.name
        first = self.seen.setdefault((name, isinstance(entry, Section)), entry)
        if first is entry:
            return
        where = f"line {first.words[0].line}"
        if first.words[0].file != entry.words[0].file:
            where += f" of {first.words[0].file}"
        if name == "volume":
            raise entry.error(f"a second volume, the first is on {where}", ONE_VOLUME)
        what = f'section "{name}"' if isinstance(entry, Section) else f'"{name}"'
        raise entry.error(f"{what} a second time, first on {where}", "write one")


def as_section(entry: Entry) -> Section:
    """`entry`, which must be a section. Raises ConfigError."""
    if not isinstance(entry, Section):
        raise entry.error(f'"{entry.name}" is a section', f"write {entry.name} {{ ... }}")
    return entry


def as_statement(entry: Entry) -> Statement:
    """`entry`, which must be a statement. Raises ConfigError."""
    if isinstance(entry, Section):
        raise entry.error(f'"{entry.name}" is no section', 'a missing ";"?')
    return entry


def no_arguments(section: Section) -> None:
    """Raises ConfigError when words stand between the section's name and its brace."""
    if section.values:
        raise section.values[0].error(f'section "{section.name}" takes no name', 'a missing ";"?')


def integer(statement: Statement, minimum: int, maximum: int) -> int:
    """The one number that follows the statement's name. Raises ConfigError."""
    if len(statement.values) != 1 or not re.fullmatch(r"[0-9]{1,20}", statement.values[0].text):
        raise statement.error(f'"{statement.name}" takes a number', f"{minimum} to {maximum}")
    number = int(statement.values[0].text)
    if not minimum <= number <= maximum:
        raise statement.error(f"{statement.name} {number} is out of range", f"allowed: {minimum} to {maximum}")
    return number
