"""What stands below a volume: device, disk, meta-disk, at whatever level of the file, and `volume` around them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from replication.drbd_conf.grammar import Entry, Section, Statement
from replication.drbd_conf.option_sections import Notes, Settings, read_options, unknown
from replication.drbd_conf.places import ONE_VOLUME, Once, as_statement, integer, no_arguments
from replication.resource import VOLUME

MINOR_MAX = 1048575
LOWER = ("device", "disk", "meta-disk", "flexible-meta-disk")
AFTER_LOWER = (*LOWER, "address", "node-id", "volume", "on", "net", "options", "handlers", "startup", "protocol")


@dataclass
class Lower:
    """device, disk, meta-disk at one level of the file."""

    device: tuple[str, int] | None = None
    disk: str | None = None
    options: Settings = field(default_factory=dict)

    def over(self, weaker: Lower) -> Lower:
        """What stands here, and from `weaker` what does not."""
        return Lower(
            device=self.device or weaker.device,
            disk=self.disk or weaker.disk,
            options={**weaker.options, **self.options},
        )


class VolumeStyle:
    """device, disk and meta-disk of one resource stand all inside `volume`, or all outside."""

    def __init__(self) -> None:
        self.first: Entry | None = None

    def check(self, entry: Entry) -> None:
        """`entry` is a volume section, or a statement outside of one. Raises ConfigError."""
        if self.first is None:
            self.first = entry
        elif (self.first.name == "volume") != (entry.name == "volume"):
            where = f"line {self.first.words[0].line}"
            fact = f'"{entry.name}" here and "{self.first.name}" on {where} mix explicit and implicit volumes'
            raise entry.error(fact, "put all device, disk and meta-disk into volume sections, or none")


def disk_only(section: Section, notes: Notes) -> Settings:
    """Options of a disk section that speaks for a volume or one host."""
    no_arguments(section)
    found = read_options(section, "disk", notes)
    if found.get("net"):
        raise section.error("fencing is for the whole resource", 'write it in the resource\'s section "net"')
    return found.get("disk", {})


def read_volume(section: Section, into: Lower, notes: Notes) -> None:
    """Adds what section `volume` says to `into`. Raises ConfigError."""
    if len(section.values) != 1 or not re.fullmatch(r"[0-9]{1,5}", section.values[0].text):
        raise section.error("a volume has a number", f"write volume {VOLUME} {{ ... }}")
    if int(section.values[0].text) != VOLUME:
        raise section.error(f"volume {section.values[0].text}", ONE_VOLUME)
    once = Once()
    for entry in section.entries:
        if entry.name not in LOWER:
            raise unknown(entry, LOWER, 'in section "volume"')
        once.check(entry)
        if isinstance(entry, Section):
            if entry.name != "disk":
                raise entry.error(f'"{entry.name}" is no section', 'a missing ";"?')
            into.options |= disk_only(entry, notes)
        else:
            read_lower(entry, into)


def read_lower(entry: Entry, into: Lower) -> None:
    """Adds what a statement device, disk or meta-disk says to `into`. Raises ConfigError."""
    statement = as_statement(entry)
    for word in statement.values[1:]:
        if word.line > statement.words[0].line and not word.mark and word.text in AFTER_LOWER:
            raise statement.error(f'missing ";" after "{statement.values[0].text}"')
    if statement.name == "device":
        into.device = _device(statement)
    elif statement.name == "disk":
        into.disk = _disk(statement)
    else:
        _meta_disk(statement)


def _device(statement: Statement) -> tuple[str, int]:
    """(/dev/drbdX or nothing, minor)"""
    words = list(statement.values)
    remedy = "write device minor 0;"
    name = ""
    if words and words[0].text != "minor":
        name = words.pop(0).text
        name = name if name.startswith("/dev/") else f"/dev/{name}"
        if not re.fullmatch(r"/dev/drbd([0-9]{1,7}|_[A-Za-z0-9._-]{1,100})", name):
            raise statement.error(f"device {name} is not called /dev/drbdN or /dev/drbd_NAME", remedy)
    numbered = re.fullmatch(r"/dev/drbd([0-9]+)", name)
    if not words and numbered:
        minor = int(numbered[1])
    elif len(words) == 2 and words[0].text == "minor":
        minor = integer(Statement(tuple(words)), 0, MINOR_MAX)
    else:
        raise statement.error("a device has a minor number", remedy)
    if minor > MINOR_MAX:
        raise statement.error(f"minor {minor} is out of range", f"allowed: 0 to {MINOR_MAX}")
    if numbered and int(numbered[1]) != minor:
        raise statement.error(
            f"device {name} has minor {int(numbered[1])}, not {minor}", f"write device minor {minor};"
        )
    return name, minor


def _disk(statement: Statement) -> str:
    if len(statement.values) != 1 or statement.values[0].mark:
        raise statement.error(
            "a disk is one path", "write disk /dev/...; in double quotes if it holds strange characters"
        )
    text = statement.values[0].text
    if text == "none":
        raise statement.error("a side without a disk is not supported", "both hosts keep a copy: write disk /dev/...;")
    if not text.startswith("/"):
        raise statement.error(f'disk "{text}" is not a path from the root', "write disk /dev/...;")
    return text


def _meta_disk(statement: Statement) -> None:
    if [word.text for word in statement.values] != ["internal"]:
        raise statement.error("metadata on a device of its own are not supported", "write meta-disk internal;")
