"""Every option of drbd.conf(5) that we know, in one table: its unit, range and default, and what we do with it.

Numbers are those of DRBD 8.4's drbd_limits.h, as `drbdsetup xml-help` shows them. A number may end in K, M, G (1024)
or s (512); without such a letter it counts in the option's unit. The table converts to seconds and bytes; behind it
there are no other units.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from replication.protocol.options import AfterSplitBrain, Fencing

Value = bool | int | float | str | Fencing | AfterSplitBrain
"""A converted value, as the field of the dataclass holds it."""


class Unit(enum.Enum):
    """What a number without a suffix counts: its word for messages, and how many bytes that is, if any."""

    COUNT = ("", 1)
    TENTHS = ("tenths of a second", 1)
    SECONDS = ("seconds", 1)
    MILLISECONDS = ("milliseconds", 1)
    BYTES = ("bytes", 1)
    KIBIBYTES = ("KiB", 1024)
    SECTORS = ("sectors of 512 bytes", 512)

    def __init__(self, words: str, size: int) -> None:
        self.words = words
        self.size = size


class Treatment(enum.Enum):
    HONOURED = "it does what it does in DRBD"
    MOOT = "accepted in silence: it speaks to another program, or cannot matter here"
    IGNORED = "accepted with one warning, unless it asks for what we do anyway"
    REFUSED = "an error, unless it asks for what we do anyway"


SUFFIXES = {"k": 1024, "m": 1024**2, "g": 1024**3, "s": 512}
NUMBER = re.compile(r"([0-9]{1,20})([kKmMgGs]?)")


class Invalid(Exception):
    """A value that this option cannot have: (fact, remedy). Whoever knows the line makes a ConfigError of it."""

    def __init__(self, fact: str, remedy: str = "") -> None:
        super().__init__(fact, remedy)
        self.fact = fact
        self.remedy = remedy


@dataclass(frozen=True, kw_only=True)
class Option:
    """One row. `field` names where an honoured option is kept in its section's dataclass."""

    field: str = ""
    treatment: Treatment = Treatment.MOOT
    ours: str = ""
    """The value that asks for what we do anyway, as it is written in the file."""
    why: str = ""
    """What we do instead, for the warning or refusal."""
    moved_to: tuple[str, str] | None = None
    """(section, name) it has today."""

    def convert(self, text: str) -> Value:
        """Raises Invalid."""
        return text

    def show(self, value: Value) -> str:
        """The opposite of `convert`."""
        return str(value)


@dataclass(frozen=True, kw_only=True)
class Number(Option):
    minimum: int
    maximum: int
    unit: Unit = Unit.COUNT

    def convert(self, text: str) -> int | float:
        match = NUMBER.fullmatch(text)
        if match is None:
            raise Invalid(f'"{text}" is not a number', "digits, and perhaps one of K, M, G, s")
        amount = int(match[1]) * (SUFFIXES[match[2].lower()] if match[2] else self.unit.size)
        if not self.minimum * self.unit.size <= amount <= self.maximum * self.unit.size:
            bounds = f"{self.minimum} to {self.maximum} {self.unit.words}".rstrip()
            raise Invalid(f"{text} is out of range", f"allowed: {bounds}")
        if self.unit is Unit.TENTHS:
            return amount / 10
        if self.unit is Unit.SECONDS:
            return float(amount)
        return amount

    def show(self, value: Value) -> str:
        assert isinstance(value, int | float), value
        if self.unit is Unit.TENTHS:
            return str(round(value * 10))
        amount = int(value)
        if self.unit in (Unit.KIBIBYTES, Unit.SECTORS):
            return f"{amount // 1024}K" if amount % 1024 == 0 else f"{amount // 512}s"
        return str(amount)


@dataclass(frozen=True, kw_only=True)
class Boolean(Option):
    """`name yes;`, `name no;`, `name;` and the old `no-name;`."""

    def convert(self, text: str) -> bool:
        if text not in ("yes", "no"):
            raise Invalid(f'"{text}" is neither yes nor no')
        return text == "yes"

    def show(self, value: Value) -> str:
        return "yes" if value else "no"


@dataclass(frozen=True, kw_only=True)
class Choice(Option):
    choices: tuple[str, ...]

    def convert(self, text: str) -> Value:
        if text not in self.choices:
            raise Invalid(f'"{text}" is not known', f"one of {', '.join(self.choices)}")
        return text


@dataclass(frozen=True, kw_only=True)
class FencingPolicy(Choice):
    choices: tuple[str, ...] = tuple(policy.value for policy in Fencing)

    def convert(self, text: str) -> Fencing:
        return Fencing(super().convert(text))

    def show(self, value: Value) -> str:
        assert isinstance(value, Fencing), value
        return value.value


@dataclass(frozen=True, kw_only=True)
class SplitBrainPolicy(Choice):
    def convert(self, text: str) -> AfterSplitBrain:
        super().convert(text)
        return AfterSplitBrain[text.upper().replace("-", "_")]

    def show(self, value: Value) -> str:
        assert isinstance(value, AfterSplitBrain), value
        return value.name.lower().replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class Text(Option):
    bytes_max: int = 255
    any_number: bool = False
    """Takes none, one or several words."""

    def convert(self, text: str) -> str:
        if len(text.encode("utf-8", "surrogatepass")) > self.bytes_max:
            raise Invalid(f"longer than {self.bytes_max} bytes")
        return text


DIGESTS = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")

_HONOURED, _MOOT, _IGNORED, _REFUSED = Treatment.HONOURED, Treatment.MOOT, Treatment.IGNORED, Treatment.REFUSED
_COUNT, _TENTHS, _SECONDS, _BYTES, _KIB, _SECTORS = (
    Unit.COUNT,
    Unit.TENTHS,
    Unit.SECONDS,
    Unit.BYTES,
    Unit.KIBIBYTES,
    Unit.SECTORS,
)
_PROTOCOL_C = "writes are answered when both sides have written them (protocol C)"
_CONTROLLER = "the resync keeps to c-max-rate, or to resync-rate when c-plan-ahead is 0"
_FLUSHES = "flushes reach the disk always"
_ONE_PRIMARY = "one side is Primary at a time"
_NO_QUORUM = "two sides alone have no quorum"
_PROMOTE = "the role is changed by mirroradm or the cluster manager only"

_NET: dict[str, Option] = {
    "protocol": Choice(
        choices=("A", "B", "C"), treatment=_REFUSED, ours="C", why=_PROTOCOL_C + " in this version, A and B do not"
    ),
    "timeout": Number(minimum=1, maximum=600, unit=_TENTHS, treatment=_HONOURED, field="timeout_s"),
    "connect-int": Number(minimum=1, maximum=120, unit=_SECONDS, treatment=_HONOURED, field="connect_interval_s"),
    "ping-int": Number(minimum=1, maximum=120, unit=_SECONDS, treatment=_HONOURED, field="ping_interval_s"),
    "ping-timeout": Number(minimum=1, maximum=300, unit=_TENTHS, treatment=_HONOURED, field="ping_timeout_s"),
    "ko-count": Number(minimum=0, maximum=200, unit=_COUNT, treatment=_HONOURED, field="ko_count"),
    "max-epoch-size": Number(minimum=1, maximum=20000, unit=_COUNT, treatment=_HONOURED, field="max_epoch_size"),
    "sndbuf-size": Number(minimum=0, maximum=10 * 1024**2, unit=_BYTES, treatment=_HONOURED, field="send_buffer_bytes"),
    "rcvbuf-size": Number(
        minimum=0, maximum=10 * 1024**2, unit=_BYTES, treatment=_HONOURED, field="receive_buffer_bytes"
    ),
    "cram-hmac-alg": Choice(choices=DIGESTS, treatment=_HONOURED, field="hmac_algorithm"),
    "shared-secret": Text(bytes_max=63, treatment=_HONOURED, field="shared_secret"),
    "after-sb-0pri": SplitBrainPolicy(
        choices=(
            "disconnect",
            "discard-younger-primary",
            "discard-older-primary",
            "discard-zero-changes",
            "discard-least-changes",
            "discard-local",
            "discard-remote",
        ),
        treatment=_HONOURED,
        field="after_sb_0pri",
    ),
    "after-sb-1pri": SplitBrainPolicy(
        choices=("disconnect", "consensus", "discard-secondary", "call-pri-lost-after-sb", "violently-as0p"),
        treatment=_HONOURED,
        field="after_sb_1pri",
    ),
    "after-sb-2pri": SplitBrainPolicy(
        choices=("disconnect", "call-pri-lost-after-sb", "violently-as0p"), treatment=_HONOURED, field="after_sb_2pri"
    ),
    "fencing": FencingPolicy(treatment=_HONOURED, field="fencing"),
    "verify-alg": Choice(choices=("crc32c", *DIGESTS), treatment=_HONOURED, field="verify_algorithm"),
    "use-rle": Boolean(treatment=_HONOURED, field="use_rle"),
    "allow-two-primaries": Boolean(treatment=_REFUSED, ours="no", why=_ONE_PRIMARY),
    "always-asbp": Boolean(treatment=_IGNORED, ours="no", why="after-sb policies are applied to two sides of one fork"),
    "rr-conflict": Choice(
        choices=("disconnect", "call-pri-lost", "violently", "retry-connect", "auto-discard"),
        treatment=_IGNORED,
        ours="disconnect",
        why="a Primary is never made the target of a resync; the link is given up",
    ),
    "on-congestion": Choice(
        choices=("block", "pull-ahead", "disconnect"), treatment=_REFUSED, ours="block", why="it wants protocol A"
    ),
    "congestion-fill": Number(minimum=0, maximum=20971520, unit=_SECTORS, treatment=_IGNORED, why=_PROTOCOL_C),
    "congestion-extents": Number(minimum=67, maximum=65534, treatment=_IGNORED, why=_PROTOCOL_C),
    "data-integrity-alg": Text(treatment=_IGNORED, why="data on the wire have TCP's check sums only"),
    "csums-alg": Text(treatment=_IGNORED, why="a resync sends every block that differs, or may"),
    "csums-after-crash-only": Boolean(treatment=_IGNORED, ours="no", why="there is no csums-alg"),
    "max-buffers": Number(minimum=32, maximum=131072, treatment=_IGNORED, why="buffers are bounded by themselves"),
    "unplug-watermark": Number(minimum=1, maximum=131072, treatment=_IGNORED, why="nothing is plugged"),
    "tcp-cork": Boolean(treatment=_MOOT),
    "socket-check-timeout": Number(minimum=0, maximum=300, unit=_TENTHS, treatment=_MOOT),
    "allow-remote-read": Boolean(
        treatment=_IGNORED, ours="yes", why="a side without good data of its own reads from its peer"
    ),
    "transport": Choice(choices=("tcp",), treatment=_MOOT),
    "load-balance-paths": Boolean(treatment=_IGNORED, ours="no", why="there is one path"),
    "tls": Boolean(treatment=_REFUSED, ours="no", why="the link is authenticated, not encrypted"),
}

_DISK: dict[str, Option] = {
    "al-extents": Number(minimum=67, maximum=65534, treatment=_HONOURED, field="al_extents"),
    "resync-rate": Number(minimum=1, maximum=8388608, unit=_KIB, treatment=_HONOURED, field="resync_rate_bytes_per_s"),
    "c-max-rate": Number(
        minimum=0, maximum=4194304, unit=_KIB, treatment=_HONOURED, field="resync_rate_max_bytes_per_s"
    ),
    "c-plan-ahead": Number(minimum=0, maximum=300, unit=_TENTHS, treatment=_HONOURED, field="resync_plan_ahead_s"),
    "c-min-rate": Number(minimum=0, maximum=4194304, unit=_KIB, treatment=_IGNORED, why=_CONTROLLER),
    "c-fill-target": Number(minimum=0, maximum=1048576, unit=_SECTORS, treatment=_IGNORED, why=_CONTROLLER),
    "c-delay-target": Number(minimum=1, maximum=100, unit=_TENTHS, treatment=_IGNORED, why=_CONTROLLER),
    "on-io-error": Choice(
        choices=("pass_on", "call-local-io-error", "detach"),
        treatment=_IGNORED,
        ours="detach",
        why="a disk that fails is detached",
    ),
    "disk-barrier": Boolean(treatment=_MOOT),
    "disk-flushes": Boolean(treatment=_IGNORED, ours="yes", why=_FLUSHES),
    "disk-drain": Boolean(treatment=_IGNORED, ours="yes", why=_FLUSHES),
    "md-flushes": Boolean(treatment=_IGNORED, ours="yes", why=_FLUSHES),
    "al-updates": Boolean(treatment=_IGNORED, ours="yes", why="the activity log is written always"),
    "resync-after": Text(treatment=_IGNORED, why="resources are resynchronised independently"),
    "read-balancing": Choice(
        choices=(
            "prefer-local",
            "prefer-remote",
            "round-robin",
            "least-pending",
            "when-congested-remote",
            *(f"{size}-striping" for size in ("32K", "64K", "128K", "256K", "512K", "1M")),
        ),
        treatment=_IGNORED,
        ours="prefer-local",
        why="reads are served by the local disk while its data are good",
    ),
    "disk-timeout": Number(
        minimum=0, maximum=6000, unit=_TENTHS, treatment=_IGNORED, ours="0", why="a disk is waited for"
    ),
    "size": Number(
        minimum=0, maximum=2199023255552, unit=_SECTORS, treatment=_IGNORED, ours="0", why="the whole device is used"
    ),
    "discard-zeroes-if-aligned": Boolean(treatment=_MOOT),
    "disable-write-same": Boolean(treatment=_MOOT),
    "rs-discard-granularity": Number(
        minimum=0, maximum=1024**2, unit=_BYTES, treatment=_IGNORED, ours="0", why="a resync sends zeroes as data"
    ),
    "max-bio-bvecs": Number(minimum=0, maximum=128, treatment=_MOOT),
    "use-bmbv": Boolean(treatment=_MOOT),
    "block-size": Number(minimum=512, maximum=4096, unit=_BYTES, treatment=_IGNORED, ours="512", why="it is 512"),
    "bitmap": Boolean(treatment=_REFUSED, ours="yes", why="both sides keep a bitmap"),
    "fencing": FencingPolicy(moved_to=("net", "fencing")),
}

_QUORUM = ("off", "majority", "all", *(str(votes) for votes in range(1, 33)))

_OPTIONS: dict[str, Option] = {
    "on-no-data-accessible": Choice(
        choices=("io-error", "suspend-io"),
        treatment=_IGNORED,
        ours="io-error",
        why="with no good data on either side, requests fail",
    ),
    "quorum": Choice(choices=_QUORUM, treatment=_REFUSED, ours="off", why=_NO_QUORUM),
    "quorum-minimum-redundancy": Choice(choices=_QUORUM, treatment=_REFUSED, ours="off", why=_NO_QUORUM),
    "on-no-quorum": Choice(choices=("io-error", "suspend-io"), treatment=_MOOT),
    "on-suspended-primary-outdated": Choice(choices=("disconnect", "force-secondary"), treatment=_MOOT),
    "auto-promote": Boolean(treatment=_IGNORED, ours="no", why=_PROMOTE),
    "auto-promote-timeout": Number(minimum=0, maximum=600, unit=_TENTHS, treatment=_IGNORED, why=_PROMOTE),
    "cpu-mask": Text(treatment=_IGNORED, why="the daemon runs where its service unit lets it"),
    "peer-ack-window": Number(minimum=2048, maximum=204800, unit=_SECTORS, treatment=_MOOT),
    "peer-ack-delay": Number(minimum=1, maximum=10000, unit=Unit.MILLISECONDS, treatment=_MOOT),
    "twopc-timeout": Number(minimum=50, maximum=600, unit=_TENTHS, treatment=_MOOT),
    "twopc-retry-timeout": Number(minimum=1, maximum=50, unit=_TENTHS, treatment=_MOOT),
    "max-io-depth": Number(minimum=4, maximum=4294967295, treatment=_MOOT),
}

_NO_WAIT = "the start does not wait for the peer; who may be promoted is asked at the promotion"

_STARTUP: dict[str, Option] = {
    "wfc-timeout": Number(minimum=0, maximum=300000, unit=_SECONDS, treatment=_IGNORED, why=_NO_WAIT),
    "degr-wfc-timeout": Number(minimum=0, maximum=300000, unit=_SECONDS, treatment=_IGNORED, why=_NO_WAIT),
    "outdated-wfc-timeout": Number(minimum=0, maximum=300000, unit=_SECONDS, treatment=_IGNORED, why=_NO_WAIT),
    "wait-after-sb": Boolean(treatment=_IGNORED, ours="no", why=_NO_WAIT),
    "become-primary-on": Text(any_number=True, treatment=_IGNORED, why=_PROMOTE),
    "stacked-timeouts": Boolean(treatment=_MOOT),
}


def _handler(name: str) -> Option:
    return Text(treatment=_HONOURED, field=name.replace("-", "_"))


_HANDLERS: dict[str, Option] = {
    **{
        name: _handler(name)
        for name in (
            "fence-peer",
            "unfence-peer",
            "before-resync-target",
            "after-resync-target",
            "before-resync-source",
            "initial-split-brain",
            "split-brain",
            "pri-lost-after-sb",
            "pri-lost",
            "pri-on-incon-degr",
            "local-io-error",
            "out-of-sync",
        )
    },
    "outdate-peer": Text(moved_to=("handlers", "fence-peer")),
    "quorum-lost": Text(treatment=_IGNORED, why=_NO_QUORUM),
    "disconnected": Text(treatment=_IGNORED, why="that the link is lost is told by mirroradm events2"),
}

_GLOBAL: dict[str, Option] = {
    name: Text(any_number=True, treatment=_MOOT)
    for name in (
        "usage-count",
        "minor-count",
        "dialog-refresh",
        "disable-ip-verification",
        "udev-always-use-vnr",
        "cmd-timeout-short",
        "cmd-timeout-medium",
        "cmd-timeout-long",
    )
}

OPTIONS: dict[str, dict[str, Option]] = {
    "net": _NET,
    "disk": _DISK,
    "options": _OPTIONS,
    "startup": _STARTUP,
    "handlers": _HANDLERS,
    "global": _GLOBAL,
}
"""Section -> name -> option."""


def honoured(section: str) -> dict[str, Option]:
    """Name -> option, of those in `section` that the dataclasses keep."""
    return {name: option for name, option in OPTIONS[section].items() if option.treatment is Treatment.HONOURED}
