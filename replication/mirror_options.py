"""NAME.toml -> MirrorOptions."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from enum import Enum
from pathlib import Path

from replication.drbd_conf import grammar
from replication.errors import ConfigError
from replication.names import nearest
from replication.resource import MirrorOptions


def read_mirror_options(path: Path) -> MirrorOptions:
    """The defaults when there is no such file. Raises ConfigError for what it says wrong."""
    try:
        there = path.exists()
    except OSError as error:
        raise ConfigError(path, None, f"cannot be read: {error.strerror}") from error
    return parse_mirror_options(grammar.read(path), path) if there else MirrorOptions()


def parse_mirror_options(text: str, file: Path) -> MirrorOptions:
    """A key may be written with - for _. Raises ConfigError."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+), column \d+\)", str(error))
        fact = str(error).partition(" (at ")[0]
        last = text.count("\n") + 1  # "at end of document"
        raise ConfigError(file, int(found[1]) if found else last, f"is not TOML: {fact}") from error
    except RecursionError as error:
        raise ConfigError(file, None, "is nested too deep") from error
    known = {field.name: type(field.default) for field in fields(MirrorOptions)}
    values: dict[str, Enum] = {}
    for key, value in table.items():
        line = _line_of(key, text)
        name = key.replace("-", "_")
        kind = known.get(name)
        if kind is None:
            raise ConfigError(
                file, line, f"unknown option {ascii(key)[1:-1]!r}".replace("'", '"'), nearest(name, known)
            )
        assert issubclass(kind, Enum)
        if name in values:
            raise ConfigError(file, line, f'option "{name}" given twice')
        allowed = [member.value for member in kind]
        if not isinstance(value, str) or value not in allowed:
            raise ConfigError(file, line, f'"{name}" cannot be {value!a}', f"one of {', '.join(allowed)}")
        values[name] = kind(value)
    return MirrorOptions(**values)  # type: ignore[arg-type]  # each value is a member of its field's enumeration


def _line_of(key: str, text: str) -> int | None:
    pattern = re.compile(rf"""\s*\[*["']?{re.escape(key)}["']?\s*[=.\]]""")
    return next((number for number, line in enumerate(text.split("\n"), 1) if pattern.match(line)), None)
