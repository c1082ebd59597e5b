"""The tree of a configuration file -> resources: which section may stand where, and what wins over what.

From weak to strong: `common`, `resource`, its `volume`, its `connection`, the host's `on`, the host's `volume`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from replication.drbd_conf.grammar import Entry, Section, Statement, Word
from replication.drbd_conf.host_address import read_address, read_port
from replication.drbd_conf.lower_device import LOWER, Lower, VolumeStyle, disk_only, read_lower, read_volume
from replication.drbd_conf.option_sections import Notes, Settings, read_options, unknown
from replication.drbd_conf.places import Once, as_section, as_statement, integer, no_arguments
from replication.mirror_options import read_mirror_options
from replication.names import nearest
from replication.protocol.options import Fencing, Takeover
from replication.resource import DiskOptions, Handlers, Host, MirrorOptions, NetOptions, Resource

RESOURCE_NAME = re.compile(r"(?!all$)[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,253}")
NODE_ID_MAX = 31

TOP = ("global", "common", "resource", "include", "skip")
OPTION_SECTIONS = ("options", "net", "disk", "startup", "handlers")
IN_RESOURCE = (*OPTION_SECTIONS, *LOWER, "protocol", "volume", "on", "floating", "connection", "connection-mesh")
IN_HOST = ("address", "node-id", *LOWER, "volume", "options")
IN_CONNECTION = ("host", "path", "net", "disk", "volume")

REFUSED_SECTIONS = {
    "floating": ("hosts are told apart by their names here", "write on HOST { address ...; }"),
    "stacked-on-top-of": ("stacked resources are not supported", "a resource has two hosts"),
    "ignore-on": ("a resource has two hosts", "leave the section of the third host out, or write skip before it"),
    "template-file": ("templates are not supported", "write common sections into a file and include it"),
    "syncer": ("it is DRBD 8.3's", 'write resync-rate into section "disk", verify-alg into section "net"'),
}


@dataclass
class _Side:
    """Section `on`, as it stands there."""

    section: Section
    lower: Lower
    address: tuple[str, int] | None = None
    node_id: int | None = None

    @property
    def name(self) -> str:
        return self.section.values[0].text


class ResourceReader:
    """Reads one tree. `mirror`: what counts instead of the NAME.toml that may lie beside the file."""

    def __init__(self, mirror: MirrorOptions | None = None) -> None:
        self.mirror = mirror

    def read(self, entries: Sequence[Entry]) -> list[Resource]:
        """Raises ConfigError."""
        notes = Notes()
        common: dict[str, Settings] = {}
        resources: list[Section] = []
        once = Once()
        for entry in entries:
            if entry.name.startswith("require-drbd-module-version-"):
                continue  # there is no module
            if entry.name not in TOP:
                raise unknown(entry, TOP, "at the top level of the file")
            section = as_section(entry)
            if section.name == "resource":
                resources.append(section)
                continue
            once.check(section)
            if section.values:
                raise section.values[0].error(f'section "{section.name}" takes no name')
            if section.name == "global":
                read_options(section, "global", notes)
            else:
                self._common(section, common, notes)
        read: dict[str, Section] = {}
        found = []
        for section in resources:
            resource = _ResourceSection(section, common, notes, self.mirror).read()
            first = read.setdefault(resource.name, section)
            if first is not section:
                where = f"line {first.words[0].line} of {first.words[0].file}"
                raise section.error(f'resource "{resource.name}" a second time, first on {where}', "write one")
            found.append(resource)
        return found

    def _common(self, section: Section, common: dict[str, Settings], notes: Notes) -> None:
        once = Once()
        for entry in section.entries:
            if entry.name == "protocol":
                _protocol(entry, notes)
                continue
            if entry.name not in OPTION_SECTIONS:
                raise unknown(entry, (*OPTION_SECTIONS, "protocol"), 'in section "common"')
            once.check(as_section(entry))
            _merge(common, read_options(as_section(entry), entry.name, notes))


class _ResourceSection:
    def __init__(
        self, section: Section, common: dict[str, Settings], notes: Notes, mirror: MirrorOptions | None
    ) -> None:
        self.section = section
        self.mirror = mirror
        self.settings = {kind: dict(values) for kind, values in common.items()}
        self.notes = Notes(notes)
        self.own = Lower()
        self.volume = Lower()
        self.volumes = VolumeStyle()
        self.sides: list[_Side] = []
        self.connections: list[Section] = []

    def read(self) -> Resource:
        name = self._name()
        once = Once()
        for entry in self.section.entries:
            self._entry(entry, once)
        if self.sides and self.connections:
            self._connection(self.connections)
        hosts = self._hosts(name)
        resource = Resource(
            name=name,
            file=self.section.words[0].file,
            hosts=hosts,
            net=NetOptions(**self._of("net")),
            disk=DiskOptions(**self._of("disk")),
            handlers=Handlers(**self._of("handlers")),
            mirror=self.mirror or read_mirror_options(self.section.words[0].file.parent / f"{name}.toml"),
        )
        self._look_at(resource)
        return replace(resource, warnings=tuple(self.notes))

    def _name(self) -> str:
        values = self.section.values
        if len(values) != 1 or values[0].mark:
            raise self.section.error("a resource has one name", "write resource NAME { ... }")
        if not RESOURCE_NAME.fullmatch(values[0].text):
            fact = f'"{values[0].text}" cannot be the name of a resource'
            raise values[0].error(
                fact, 'up to 64 letters, digits, _ . -, beginning with none of the last two; not "all"'
            )
        return values[0].text

    def _entry(self, entry: Entry, once: Once) -> None:
        if isinstance(entry, Section) and entry.name in OPTION_SECTIONS:
            once.check(entry)
            no_arguments(entry)
            _merge(self.settings, read_options(entry, entry.name, self.notes))
        elif entry.name == "protocol":
            once.check(entry)
            _protocol(entry, self.notes)
        elif entry.name in LOWER:
            once.check(entry)
            self.volumes.check(entry)
            read_lower(entry, self.own)
        elif entry.name == "volume":
            once.check(entry)
            self.volumes.check(entry)
            read_volume(as_section(entry), self.volume, self.notes)
        elif entry.name == "on":
            self._on(as_section(entry))
        elif entry.name in ("connection", "connection-mesh"):
            self.connections.append(as_section(entry))
        elif entry.name in REFUSED_SECTIONS:
            why, remedy = REFUSED_SECTIONS[entry.name]
            raise entry.error(f'"{entry.name}" is not supported: {why}', remedy)
        else:
            raise unknown(entry, IN_RESOURCE, 'in section "resource"')

    def _on(self, section: Section) -> None:
        if len(section.values) != 1:
            raise section.error('section "on" is for one host', "write on HOST { ... }, HOST as uname -n prints it")
        host = section.values[0]
        if not HOST_NAME.fullmatch(host.text):
            raise host.error(f'"{host.text}" cannot be the name of a host')
        for other in self.sides:
            if other.name == host.text:
                raise host.error(f'host "{host.text}" a second time, first on line {other.section.words[0].line}')
        side = _Side(section, Lower())
        volume = Lower()
        once = Once()
        for entry in section.entries:
            if entry.name in REFUSED_SECTIONS or entry.name not in IN_HOST:
                raise unknown(entry, IN_HOST, 'in section "on"')
            once.check(entry)
            if entry.name == "address":
                side.address = read_address(as_statement(entry).words[0], entry.values)
            elif entry.name == "node-id":
                side.node_id = integer(as_statement(entry), 0, NODE_ID_MAX)
            elif entry.name == "volume":
                self.volumes.check(entry)
                read_volume(as_section(entry), volume, self.notes)
            elif entry.name == "options":
                read_options(as_section(entry), "options", self.notes)
            elif isinstance(entry, Section):
                side.lower.options |= disk_only(entry, self.notes)
            else:
                self.volumes.check(entry)
                read_lower(entry, side.lower)
        side.lower = volume.over(side.lower)
        self.sides.append(side)

    def _connection(self, sections: list[Section]) -> None:
        if len(sections) > 1:
            raise sections[1].error("a second connection", "a resource has two hosts and one connection")
        [section] = sections
        once = Once()
        if section.name == "connection-mesh":
            for entry in section.entries:
                once.check(entry)
                if entry.name == "hosts":
                    names = as_statement(entry).values
                    self._both([(word, None) for word in names], entry.words[0])
                elif entry.name == "net":
                    _merge(self.settings, read_options(as_section(entry), "net", self.notes))
                else:
                    raise unknown(entry, ("hosts", "net"), 'in section "connection-mesh"')
            return
        ends: list[Statement] = []
        for entry in section.entries:
            if entry.name == "host":
                ends.append(as_statement(entry))
                continue
            if entry.name not in IN_CONNECTION:
                raise unknown(entry, IN_CONNECTION, 'in section "connection"')
            once.check(entry)
            inner = as_section(entry)
            if entry.name == "path":
                for end in inner.entries:
                    if end.name != "host":
                        raise unknown(end, ("host",), 'in section "path"')
                    ends.append(as_statement(end))
            elif entry.name == "volume":
                read_volume(inner, self.volume, self.notes)
            else:
                _merge(self.settings, read_options(inner, entry.name, self.notes))
        self._both([self._end(end) for end in ends], section.words[0])

    def _end(self, end: Statement) -> tuple[Word, tuple[Word, ...] | None]:
        if not end.values:
            raise end.error('"host" without a name')
        return end.values[0], end.values[1:] or None

    def _both(self, ends: list[tuple[Word, tuple[Word, ...] | None]], where: Word) -> None:
        sides = {side.name: side for side in self.sides}
        for word, _ in ends:
            if word.text not in sides:
                raise word.error(f'host "{word.text}" has no "on" section', nearest(word.text, sides))
        if len(ends) != 2 or ends[0][0].text == ends[1][0].text:
            raise where.error("a connection has two hosts")
        for word, rest in ends:
            side = sides[word.text]
            if rest is None:
                continue
            if rest[0].text == "address":
                side.address = read_address(rest[0], rest[1:])
            elif rest[0].text == "port" and len(rest) == 2 and side.address is not None:
                side.address = (side.address[0], read_port(rest[1], rest[1].text))
            else:
                raise rest[0].error(f'unexpected "{rest[0].text}"', "write host NAME address IP:PORT;")

    def _hosts(self, name: str) -> tuple[Host, Host]:
        if len(self.sides) != 2:
            there = ", ".join(side.name for side in self.sides) or "none"
            fact = f'resource "{name}" has {len(self.sides)} "on" sections ({there})'
            raise self.section.error(fact, "a resource has exactly two hosts")
        shared = self.volume.over(self.own)
        self.settings.setdefault("disk", {}).update(shared.options)
        first, second = (self._host(side, shared) for side in self.sides)
        if (first.address, first.port) == (second.address, second.port):
            raise self.sides[1].section.error(f"both hosts have the address {first.address}:{first.port}")
        if ipaddress.ip_address(first.address).version != ipaddress.ip_address(second.address).version:
            raise self.sides[1].section.error(
                "one host has an IPv4 address, the other an IPv6 one", "they must reach each other"
            )
        return first, second

    def _host(self, side: _Side, shared: Lower) -> Host:
        lower = side.lower.over(Lower(shared.device, shared.disk))
        for what, value, example in (
            ("device", lower.device, "device minor 0;"),
            ("disk", lower.disk, "disk /dev/...;"),
            ("address", side.address, "address IP:PORT;"),
        ):
            if value is None:
                raise side.section.error(f'host "{side.name}" has no {what}', f"write {example}")
        assert lower.device is not None
        assert lower.disk is not None
        assert side.address is not None
        general = DiskOptions(**self._of("disk"))
        special = DiskOptions(**{**self._of("disk"), **side.lower.options})
        return Host(
            name=side.name,
            address=side.address[0],
            port=side.address[1],
            minor=lower.device[1],
            disk=lower.disk,
            device_name=lower.device[0],
            node_id=side.node_id,
            disk_options=special if special != general else None,
        )

    def _of(self, kind: str) -> dict[str, Any]:
        return self.settings.get(kind, {})

    def _look_at(self, resource: Resource) -> None:
        net, here = resource.net, self.section
        if net.hmac_algorithm and not net.shared_secret:
            raise here.error("cram-hmac-alg without shared-secret", "write the secret of both hosts, or neither option")
        if net.shared_secret and not net.hmac_algorithm:
            self.notes.add(
                "secret", here.words[0], "shared-secret without cram-hmac-alg: the peer is not authenticated"
            )
        if net.fencing is not Fencing.DONT_CARE and not resource.handlers.fence_peer:
            self.notes.add("fencing", here.words[0], f"fencing {net.fencing.value} without a fence-peer handler")
        if resource.mirror.takeover is not Takeover.MANUAL and resource.takeover is Takeover.MANUAL:
            text = (
                f'takeover "{resource.mirror.takeover.value}" in {resource.name}.toml acts as "manual": it wants'
                " fencing resource-and-stonith and a fence-peer handler"
            )
            self.notes.add("takeover", here.words[0], text)


def _merge(into: dict[str, Settings], more: dict[str, Settings]) -> None:
    for kind, values in more.items():
        into.setdefault(kind, {}).update(values)


def _protocol(entry: Entry, notes: Notes) -> None:
    statement = as_statement(entry)
    read_options(Section(statement.words[:1], (statement,)), "net", notes)
