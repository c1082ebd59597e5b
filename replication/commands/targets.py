"""What a command is about: RES, RES/0 or all, and the configuration that defines it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from replication import config
from replication.config import Resource
from replication.control import Exit, NotRunning, check_name
from replication.errors import ConfigError, MirrorError, Refusal

ALL = "all"


def defined(source: Path) -> list[Resource]:
    """Every resource of a directory of .res files, or of one file. Raises ConfigError."""
    return config.all_resources(source) if source.is_dir() else config.read_file(source)


def look_up(name: str, source: Path) -> Resource:
    """Raises Refusal for a resource that is not defined, ConfigError for what cannot be used."""
    try:
        if source.is_dir():
            return config.find(name, source)
        for resource in config.read_file(source):
            if resource.name == name:
                return resource
    except ConfigError as error:
        if not source.is_dir() or (source / f"{name}.res").exists():
            raise
        raise Refusal(f"mirror {name}", f"{error.subject} {error.fact}", error.remedy, code=Exit.USAGE) from None
    raise Refusal(f"mirror {name}", f"{source} does not define it", "see: mirroradm dump all", code=Exit.USAGE)


def here() -> str:
    """The name of this host in section `on`."""
    return os.uname().nodename


def all_defined(source: Path) -> list[str]:
    return [resource.name for resource in defined(source)]


def names(words: list[str], every: Callable[[], list[str]]) -> list[str]:
    """The resources that are meant, each once; `every` says what `all` means.

    Raises Refusal for a name that cannot be, and whatever `every` raises if it is needed.
    """
    found: dict[str, None] = {}
    for word in words:
        if word == ALL:
            found |= dict.fromkeys(every())
            continue
        name, slash, volume = word.partition("/")
        if slash and volume != "0":
            raise Refusal(f"mirror {name}", f"it has one volume, 0, not {volume!r}", f"say {name}", code=Exit.USAGE)
        found[check_name(name)] = None
    return list(found)


def explained(error: MirrorError, name: str, source: Path) -> MirrorError:
    """`error`; but of a daemon that does not run because nothing defines the resource, that."""
    if not isinstance(error, NotRunning):
        return error
    try:
        look_up(name, source)
    except Refusal as undefined:
        return undefined
    except (ConfigError, OSError):
        pass
    return error
