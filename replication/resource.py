"""What a resource is, as its files say: frozen dataclasses. Times in seconds, sizes in bytes, defaults DRBD's.

How it is read: replication.config; how it is written in DRBD's grammar: replication.drbd_conf.text.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path

from replication.errors import ConfigError
from replication.protocol.options import AfterSplitBrain, Fencing, Takeover, VolumeOptions

VOLUME = 0
"""The number of a resource's one volume."""


@dataclass(frozen=True)
class NetOptions:
    """Section `net`."""

    timeout_s: float = 6.0
    connect_interval_s: float = 10.0
    ping_interval_s: float = 10.0
    ping_timeout_s: float = 0.5
    ko_count: int = 7
    max_epoch_size: int = 2048
    send_buffer_bytes: int = 0
    """Of the socket; 0: the kernel's choice."""
    receive_buffer_bytes: int = 0
    hmac_algorithm: str = ""
    shared_secret: str = field(default="", repr=False)
    after_sb_0pri: AfterSplitBrain = AfterSplitBrain.DISCONNECT
    after_sb_1pri: AfterSplitBrain = AfterSplitBrain.DISCONNECT
    after_sb_2pri: AfterSplitBrain = AfterSplitBrain.DISCONNECT
    fencing: Fencing = Fencing.DONT_CARE
    verify_algorithm: str = ""
    """Digest of the online verify; empty: no verify is configured."""
    use_rle: bool = True


@dataclass(frozen=True)
class DiskOptions:
    """Section `disk`."""

    al_extents: int = 1237
    resync_rate_bytes_per_s: int = 250 * 1024
    """The fixed rate; counts when `resync_plan_ahead_s` is 0."""
    resync_rate_max_bytes_per_s: int = 100 * 1024 * 1024
    """The most that a resync may adapt itself to; 0: no limit."""
    resync_plan_ahead_s: float = 2.0

    @property
    def resync_limit_bytes_per_s(self) -> int:
        """What a resync may use, 0: no limit."""
        return self.resync_rate_max_bytes_per_s if self.resync_plan_ahead_s else self.resync_rate_bytes_per_s


@dataclass(frozen=True)
class Handlers:
    """Section `handlers`: command lines for the shell, empty where there is none."""

    fence_peer: str = ""
    unfence_peer: str = ""
    before_resync_target: str = ""
    after_resync_target: str = ""
    before_resync_source: str = ""
    initial_split_brain: str = ""
    split_brain: str = ""
    pri_lost_after_sb: str = ""
    pri_lost: str = ""
    pri_on_incon_degr: str = ""
    local_io_error: str = ""
    out_of_sync: str = ""

    def command(self, name: str) -> str:
        """The command line for the handler that DRBD calls `name` ("fence-peer"); empty when none is configured."""
        command = getattr(self, name.replace("-", "_"))
        assert isinstance(command, str), name
        return command


class Reverse(enum.Enum):
    """May the returning side become the target of a resync after a takeover, without an operator's word?"""

    MANUAL = "manual"
    CONSISTENT = "consistent"
    ALWAYS = "always"


class OnReturn(enum.Enum):
    """What a returning side does that was never Primary since the fork."""

    AUTO = "auto"
    HOLD = "hold"


class BackingIo(enum.Enum):
    """How the lower device is written: through the page cache or past it."""

    AUTO = "auto"
    BUFFERED = "buffered"
    DIRECT = "direct"


class DeviceKind(enum.Enum):
    """What carries the block device the node sees: the kernel's NBD client, or nbdfuse and a loop device."""

    AUTO = "auto"
    NBD = "nbd"
    FUSE = "fuse"
    NONE = "none"
    """Only the NBD socket, for programs that speak NBD themselves."""


@dataclass(frozen=True)
class MirrorOptions:
    """What DRBD's grammar has no word for: the keys of NAME.toml, called as the fields are."""

    takeover: Takeover = Takeover.MANUAL
    reverse: Reverse = Reverse.MANUAL
    on_return: OnReturn = OnReturn.AUTO
    backing_io: BackingIo = BackingIo.AUTO
    device: DeviceKind = DeviceKind.AUTO


@dataclass(frozen=True)
class Host:
    """One side: section `on`, with what it inherits."""

    name: str
    """As `uname -n` prints it."""
    address: str
    """IPv4 or IPv6, the latter without brackets."""
    port: int
    minor: int
    disk: str
    """Path of the lower device."""
    device_name: str = ""
    """/dev/drbdN if the file names one. Ours is /dev/mirrorha/RESOURCE/0 in any case."""
    node_id: int | None = None
    """DRBD 9's number of the node; kept, and without meaning here."""
    disk_options: DiskOptions | None = None
    """For this host alone; None: the resource's."""


@dataclass(frozen=True)
class Resource:
    name: str
    file: Path = field(compare=False)
    hosts: tuple[Host, Host]
    net: NetOptions = NetOptions()
    disk: DiskOptions = DiskOptions()
    handlers: Handlers = Handlers()
    mirror: MirrorOptions = MirrorOptions()
    warnings: tuple[str, ...] = field(default=(), compare=False)
    """What was accepted and is not done, or should be looked at; each with file and line."""

    def local(self, hostname: str) -> Host:
        """The side of `hostname`. Raises ConfigError when it has none."""
        for host in self.hosts:
            if host.name == hostname:
                return host
        names = " and ".join(host.name for host in self.hosts)
        raise ConfigError(
            self.file,
            None,
            f'resource "{self.name}" has no "on" section for this host, {hostname}; it is for {names}',
            "name it as uname -n does",
        )

    def peer(self, hostname: str) -> Host:
        """The other side. Raises ConfigError when `hostname` has none of its own."""
        local = self.local(hostname)
        return self.hosts[1] if local is self.hosts[0] else self.hosts[0]

    @property
    def takeover(self) -> Takeover:
        """The takeover policy in force.

        Without `fencing resource-and-stonith` and a fence-peer handler, a Primary that loses its peer goes on writing;
        a standby that took over by itself would serve old data then. So all policies act as `manual`.
        """
        fenced = self.net.fencing is Fencing.RESOURCE_AND_STONITH and self.handlers.fence_peer
        return self.mirror.takeover if fenced else Takeover.MANUAL

    def volume_options(self, local_name: str) -> VolumeOptions:
        """What the volume on host `local_name` must know. Raises ConfigError when that host has no side."""
        local, net = self.local(local_name), self.net
        disk = local.disk_options or self.disk
        return VolumeOptions(
            resource=self.name,
            local_name=local.name,
            peer_name=self.peer(local_name).name,
            timeout_s=net.timeout_s,
            ping_interval_s=net.ping_interval_s,
            ping_timeout_s=net.ping_timeout_s,
            connect_interval_s=net.connect_interval_s,
            ko_count=net.ko_count,
            max_epoch_size=net.max_epoch_size,
            hmac_algorithm=net.hmac_algorithm,
            shared_secret=net.shared_secret,
            fencing=net.fencing,
            takeover=self.takeover,
            after_sb_0pri=net.after_sb_0pri,
            after_sb_1pri=net.after_sb_1pri,
            after_sb_2pri=net.after_sb_2pri,
            al_extents=disk.al_extents,
            resync_rate_max=disk.resync_limit_bytes_per_s,
            use_rle=net.use_rle,
        )
