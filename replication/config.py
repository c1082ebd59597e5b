"""NAME.res, in the grammar of drbd.conf(5), and NAME.toml beside it -> Resource.

Every function raises ConfigError, with file and line, for what the files say wrong. Two hosts and one volume make a
resource; what of DRBD does not fit that is refused by name, and what does not matter is accepted with a warning.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from replication.drbd_conf import grammar
from replication.drbd_conf.resource_sections import RESOURCE_NAME, ResourceReader
from replication.drbd_conf.text import dump, dump_mirror
from replication.errors import ConfigError
from replication.mirror_options import read_mirror_options
from replication.names import nearest
from replication.resource import (
    BackingIo,
    DeviceKind,
    DiskOptions,
    Handlers,
    Host,
    MirrorOptions,
    NetOptions,
    OnReturn,
    Resource,
    Reverse,
)

__all__ = [
    "DIRECTORY",
    "BackingIo",
    "DeviceKind",
    "DiskOptions",
    "Handlers",
    "Host",
    "MirrorOptions",
    "NetOptions",
    "OnReturn",
    "Resource",
    "Reverse",
    "all_resources",
    "dump",
    "dump_mirror",
    "find",
    "read_file",
    "read_mirror_options",
    "read_text",
]

DIRECTORY = Path("/etc/mirrorha/mirror.d")


def read_file(path: Path) -> list[Resource]:
    """The resources that `path`, and what it includes, define."""
    return [_with_mode_looked_at(resource) for resource in read_text(grammar.read(path), path)]


def read_text(text: str, file: Path, mirror: MirrorOptions | None = None) -> list[Resource]:
    """As `read_file`, of text that stands, or shall stand, in `file`; `mirror` counts instead of NAME.toml."""
    resources = ResourceReader(mirror).read(grammar.parse(text, file))
    _no_two_share(resources)
    return resources


def find(name: str, directory: Path = DIRECTORY) -> Resource:
    """The resource that NAME.res in `directory` defines. Other files there are not looked at."""
    there = sorted(path.stem for path in directory.glob("*.res"))
    if not RESOURCE_NAME.fullmatch(name) or name not in there:
        fact = f'has no file for resource "{name}", but for {", ".join(there)}' if there else "has no .res files"
        remedy = nearest(name, there) or "write NAME.res, the same on both hosts"
        raise ConfigError(directory, None, fact, remedy)
    path = directory / f"{name}.res"
    resources = read_file(path)
    for resource in resources:
        if resource.name == name:
            return resource
    defined = ", ".join(resource.name for resource in resources) or "no resource"
    raise ConfigError(path, None, f'defines {defined}, not "{name}"', "file and resource bear one name")


def all_resources(directory: Path = DIRECTORY) -> list[Resource]:
    """All that the .res files in `directory` define, by file name; nothing on one host is used twice."""
    resources = [resource for path in sorted(directory.glob("*.res")) for resource in read_file(path)]
    _no_two_share(resources)
    return resources


def _no_two_share(resources: Iterable[Resource]) -> None:
    owners: dict[tuple[str, ...], Resource] = {}
    for resource in resources:
        claims: list[tuple[tuple[str, ...], str]] = [(("name", resource.name), f'resource "{resource.name}"')]
        for host in resource.hosts:
            claims += [
                (("minor", host.name, str(host.minor)), f"minor {host.minor} on {host.name}"),
                (("disk", host.name, host.disk), f"disk {host.disk} on {host.name}"),
                (("port", host.address, str(host.port)), f"port {host.port} of {host.address}"),
            ]
        for claim, words in claims:
            other = owners.setdefault(claim, resource)
            if other is not resource:
                raise ConfigError(
                    resource.file,
                    None,
                    f'resource "{resource.name}": {words} belongs to resource "{other.name}" in {other.file}',
                    "give each resource its own",
                )


def _with_mode_looked_at(resource: Resource) -> Resource:
    try:
        mode = resource.file.stat().st_mode & 0o777
    except OSError as error:
        raise ConfigError(resource.file, None, f"cannot be read: {error.strerror}") from error
    if not resource.net.shared_secret or not mode & 0o077:
        return resource
    text = f"{resource.file}: holds the shared secret and has mode {mode:04o}; chmod 600 {resource.file}"
    return replace(resource, warnings=(*resource.warnings, text))
