"""A resource file for two hosts, with a secret of its own, and NAME.toml beside it."""

from __future__ import annotations

import enum
import os
import secrets
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path

import jinja2

from replication.config import DIRECTORY, Handlers, Host, MirrorOptions, Resource, dump_mirror, read_text
from replication.drbd_conf import text
from replication.drbd_conf.grammar import quote
from replication.errors import ConfigError, Refusal
from replication.protocol.options import Fencing

TEMPLATES = Path(__file__).parent / "templates"
HMAC_ALGORITHM = "sha256"
SECRET_BYTES = 24
"""48 hexadecimal digits; DRBD takes 63 characters."""
MODE = 0o600


class Existing(enum.Enum):
    """What to do with a NAME.res or NAME.toml that is there already."""

    KEEP = "keep"
    REPLACE = "replace"


@dataclass(frozen=True)
class Files:
    """The texts of NAME.res and NAME.toml; the latter empty when the defaults do."""

    res: str
    toml: str
    resource: Resource
    """What they say."""


def new_secret() -> str:
    """For `shared-secret`, from the kernel's random numbers."""
    return secrets.token_hex(SECRET_BYTES)


def render(
    name: str,
    hosts: tuple[Host, Host],
    *,
    secret: str = "",
    fencing: Fencing = Fencing.DONT_CARE,
    handlers: Handlers = Handlers(),  # noqa: B008 (frozen)
    mirror: MirrorOptions = MirrorOptions(),  # noqa: B008 (frozen)
    directory: Path = DIRECTORY,
) -> Files:
    """The files of resource `name`, not written. Without `secret` a new one is made.

    Times are set for a cluster's needs, not DRBD's defaults: a dead peer is noticed in about two seconds.

    Raises ConfigError when what was asked for makes no resource that can be read again.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {
        "quote": quote,
        "name": text.name,
        "path": text.path,
        "device": text.device,
        "address": text.address,
    }
    file = directory / f"{name}.res"
    _one_line(file, name, secret, *(host.name for host in hosts), *(host.disk for host in hosts))
    try:
        res = environment.get_template("resource.res.j2").render(
            name=name,
            hosts=hosts,
            hmac_algorithm=HMAC_ALGORITHM,
            secret=secret or new_secret(),
            fencing=fencing.value,
            handlers=[
                (field.name.replace("_", "-"), getattr(handlers, field.name))
                for field in fields(handlers)
                if getattr(handlers, field.name)
            ],
        )
    except ValueError as error:  # of ipaddress: the address is none
        raise ConfigError(file, None, str(error), "an address is an IPv4 or IPv6 address") from error
    [resource] = read_text(res, file, mirror)
    return Files(res, dump_mirror(mirror), resource)


def write(files: Files, *, existing: Existing = Existing.KEEP) -> Path:
    """Writes both files into the directory that they were rendered for, whole or not at all, mode 0600, durably.

    NAME.toml comes first: what stands in NAME.res counts from that moment on. Returns the path of NAME.res. Raises
    Refusal when a file is there and shall be kept, ConfigError when the directory cannot be written.
    """
    res = files.resource.file
    toml = res.with_name(f"{files.resource.name}.toml")
    try:
        res.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if existing is Existing.KEEP:
            for path in (res, toml):
                if path.exists():
                    raise _there_already(path)
        if files.toml:
            _write(toml, files.toml, existing)
        else:
            toml.unlink(missing_ok=True)
        _write(res, files.res, existing)
        _make_durable(res.parent)
    except OSError as error:
        raise ConfigError(res, None, f"cannot be written: {error.strerror}") from error
    return res


def _write(path: Path, content: str, existing: Existing) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), MODE)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if existing is Existing.KEEP:
            os.link(temporary, path)  # unlike a rename, it fails when somebody else was first
        else:
            os.replace(temporary, path)
    except FileExistsError as error:
        raise _there_already(path) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _make_durable(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _there_already(path: Path) -> Refusal:
    return Refusal(str(path), "is there already", "its secret would be lost: remove it, or ask to replace it")


def _one_line(file: Path, *texts: str) -> None:
    for one in texts:
        if not one.isprintable():
            raise ConfigError(file, None, f"{one!a} holds a character that cannot be printed")
