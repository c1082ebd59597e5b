"""A resource -> text in DRBD's grammar, laid out as `drbdadm dump` does, which drbdadm accepts as well."""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
import re
from typing import TYPE_CHECKING

from replication.drbd_conf.grammar import quote
from replication.drbd_conf.options import OPTIONS, Text, honoured
from replication.resource import VOLUME, DiskOptions, Handlers, Host, MirrorOptions, NetOptions, Resource

if TYPE_CHECKING:
    from collections.abc import Iterator

VALUE_COLUMN = 24

_PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,127}")
_KEYWORDS = {
    *(name for options in OPTIONS.values() for name in options),
    *OPTIONS,
    *("common", "resource", "include", "skip", "on", "floating", "volume", "connection", "host", "path", "syncer"),
    *("device", "address", "port", "protocol", "minor", "internal", "ipv4", "ipv6", "sdp", "ssocks", "node-id"),
}


def dump(resource: Resource) -> str:
    """What was understood: all that differs from the defaults; that and NAME.toml read again give an equal resource.

    Comments say what drbdadm would not understand, and what was accepted but is not done. Holds the shared secret.
    """
    lines = [f"# {_one_line(str(resource.file))}"]
    lines += [f"# warning: {_one_line(warning)}" for warning in resource.warnings]
    lines += [f"# {resource.name}.toml: {line}" for line in dump_mirror(resource.mirror).splitlines()]
    lines += [f"resource {name(resource.name)} {{"]
    of_their_own = any(host.disk_options is not None for host in resource.hosts)
    for host in resource.hosts:
        lines += [f"    on {name(host.name)} {{", *_host(host, resource.disk, of_their_own), "    }"]
    lines += _section("net", resource.net, NetOptions(), " " * 4, [_line("protocol", "C", " " * 8)])
    lines += _section("disk", resource.disk, DiskOptions(), " " * 4)
    lines += _section("handlers", resource.handlers, Handlers(), " " * 4)
    return "\n".join([*lines, "}", ""])


def dump_mirror(mirror: MirrorOptions) -> str:
    """The text of NAME.toml: what differs from the defaults."""
    default = MirrorOptions()
    lines = []
    for field in dataclasses.fields(mirror):
        value = getattr(mirror, field.name)
        assert isinstance(value, enum.Enum)
        if value is not getattr(default, field.name):
            lines.append(f'{field.name} = "{value.value}"\n')
    return "".join(lines)


def name(text: str) -> str:
    """A name of a host or resource, in quotes where drbdadm would take it for something else."""
    return text if _PLAIN_NAME.fullmatch(text) and text not in _KEYWORDS else quote(text)


def address(host: Host) -> str:
    """Family, address and port as the grammar wants them."""
    if ipaddress.ip_address(host.address).version == 6:
        return f"ipv6 [{host.address}]:{host.port}"
    return f"ipv4 {host.address}:{host.port}"


def device(host: Host) -> str:
    """What follows the word `device`."""
    return f"{host.device_name} minor {host.minor}".lstrip()


def path(text: str) -> str:
    """A path, in quotes where it holds what a bare word may not."""
    return text if re.fullmatch(r"[A-Za-z0-9/._-]{1,128}", text) else quote(text)


def _host(host: Host, general: DiskOptions, in_volume: bool) -> Iterator[str]:
    """The lines of one host. drbdadm takes a section `disk` there only in a volume, and a volume only on both sides."""
    indent = " " * 8
    if host.node_id is not None:
        yield f"{indent}node-id {host.node_id};"
    if in_volume:
        yield f"{indent}volume {VOLUME} {{"
        if host.disk_options is not None:
            yield from _section("disk", host.disk_options, general, indent + "    ")
        yield from _lower(host, indent + "    ")
        yield indent + "}"
    else:
        yield from _lower(host, indent)
    yield _line("address", address(host), indent)


def _lower(host: Host, indent: str) -> Iterator[str]:
    yield _line("device", device(host), indent)
    yield _line("disk", path(host.disk), indent)
    yield _line("meta-disk", "internal", indent)


def _section(
    section: str,
    values: NetOptions | DiskOptions | Handlers,
    default: NetOptions | DiskOptions | Handlers,
    indent: str,
    always: list[str] | None = None,
) -> list[str]:
    lines = list(always or ())
    for option_name, option in honoured(section).items():
        value = getattr(values, option.field)
        if value != getattr(default, option.field):
            shown = option.show(value)
            lines.append(_line(option_name, quote(shown) if isinstance(option, Text) else shown, indent + "    "))
    return [f"{indent}{section} {{", *lines, indent + "}"] if lines else []


def _line(option: str, value: str, indent: str) -> str:
    return f"{indent}{option:<{VALUE_COLUMN - len(indent)}} {value:>3};"


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
