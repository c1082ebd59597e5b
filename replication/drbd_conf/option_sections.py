"""A section of options (net, disk, handlers ...) -> converted values, by the table in replication.drbd_conf.options."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from replication.drbd_conf.grammar import Entry, Section, Statement, Word
from replication.drbd_conf.options import OPTIONS, Boolean, Invalid, Option, Text, Treatment, Value
from replication.errors import ConfigError
from replication.names import nearest

Settings = dict[str, Value]
"""Field of the section's dataclass -> value."""


class Notes:
    """Warnings, one for each subject, in the order they came up."""

    def __init__(self, earlier: Notes | None = None) -> None:
        self._texts: dict[str, str] = dict(earlier._texts) if earlier else {}

    def add(self, subject: str, where: Word, text: str) -> None:
        self._texts.setdefault(subject, f"{where.file} line {where.line}: {text}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts.values())


def unknown(entry: Entry, known: Iterable[str], where: str) -> ConfigError:
    """`entry` may not stand `where` ("in section "disk""); only `known` may."""
    kind = "section" if isinstance(entry, Section) else "option"
    remedy = nearest(entry.name, known)
    homes = [section for section, options in OPTIONS.items() if _option(entry.name, options) and section != "global"]
    if homes and not isinstance(entry, Section) and f'"{homes[0]}"' not in where:
        remedy = f'it belongs in section "{homes[0]}"'
    return entry.error(f'unknown {kind} "{entry.name}" {where}', remedy)


def read_options(section: Section, kind: str, notes: Notes) -> dict[str, Settings]:
    """Kind of section -> settings; `kind` says which options `section` may hold. Raises ConfigError.

    Options that moved are found under the section that they belong to today.
    """
    found: dict[str, Settings] = {}
    first: dict[tuple[str, str], Statement] = {}
    known = OPTIONS[kind]
    for entry in section.entries:
        option = _option(entry.name, known)
        if isinstance(entry, Section):
            raise _not_a_section(entry, section, option is not None)
        if option is None:
            raise unknown(entry, known, f'in section "{kind}"')
        name = entry.name if entry.name in known else entry.name.removeprefix("no-")
        text = _text(entry, option, known)
        home, name = option.moved_to or (kind, name)
        option = OPTIONS[home][name]
        earlier = first.setdefault((home, name), entry)
        if earlier is not entry:
            raise entry.error(f'option "{name}" given twice, first on line {earlier.words[0].line}', "keep one")
        try:
            value = option.convert(text)
        except Invalid as error:
            raise entry.error(f'option "{name}": {error.fact}', error.remedy) from error
        if option.treatment is Treatment.HONOURED:
            found.setdefault(home, {})[option.field] = value
        elif not option.ours or value != option.convert(option.ours):
            shown = f'"{name} {text}"'
            if option.treatment is Treatment.REFUSED:
                raise entry.error(f"{shown} is not supported: {option.why}", f"write {name} {option.ours};")
            if option.treatment is Treatment.IGNORED:
                notes.add(f"{home}.{name}", entry.words[0], f"{shown} is ignored: {option.why}")
    return found


def _option(name: str, known: dict[str, Option]) -> Option | None:
    if name in known:
        return known[name]
    plain = known.get(name.removeprefix("no-"))
    return plain if isinstance(plain, Boolean) and name.startswith("no-") else None


def _not_a_section(entry: Section, inside: Section, known_as_option: bool) -> ConfigError:
    if known_as_option and entry.values:
        return entry.error(f'missing ";" after "{entry.name} {entry.values[0].text}"')
    if known_as_option:
        return entry.error(f'"{entry.name}" is an option, not a section', f"write {entry.name} VALUE;")
    return entry.error(f'section "{entry.name}" stands inside section "{inside.name}"', 'a missing "}" before it?')


def _text(entry: Statement, option: Option, known: dict[str, Option]) -> str:
    """The option's value as one text."""
    values = entry.values
    for before, word in zip(entry.words, values, strict=False):
        if word.mark:
            remedy = f'put the value in double quotes: {entry.name} "...";'
            raise word.error(f'unexpected "{word.text}" in the value of "{entry.name}"', remedy)
        if word.line > before.line and not word.quoted and _option(word.text, known):
            raise before.error(f'missing ";" after "{before.text}"')
    if isinstance(option, Text) and option.any_number:
        return " ".join(word.text for word in values)
    if isinstance(option, Boolean):
        return _truth(entry, known)
    if not values:
        raise entry.error(f'option "{entry.name}" has no value', f"write {entry.name} VALUE;")
    if len(values) > 1:
        raise values[1].error(f'unexpected "{values[1].text}" after "{entry.name} {values[0].text}"', 'a missing ";"?')
    return values[0].text


def _truth(entry: Statement, known: dict[str, Option]) -> str:
    """yes or no, of `name;`, `name yes;`, `name no;` and `no-name;`; whatever else stands there as it is."""
    values = entry.values
    if len(values) > 1:
        raise values[1].error(f'unexpected "{values[1].text}" after "{entry.name} {values[0].text}"', 'a missing ";"?')
    if entry.name in known:
        return values[0].text if values else "yes"
    if values:
        raise entry.error(f'"{entry.name}" takes no value', f"write {entry.name}; or {entry.name[3:]} yes|no;")
    return "no"
