"""What a volume must know of its configuration. Times in seconds, sizes in bytes."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from replication.protocol.packets import FEATURES, Feature


class Takeover(enum.Enum):
    """Who may take over after the active side was lost (design: promotion score is advice, promote decides)."""

    MANUAL = "manual"
    CONSISTENT = "consistent"


class Fencing(enum.Enum):
    DONT_CARE = "dont-care"
    RESOURCE_ONLY = "resource-only"
    RESOURCE_AND_STONITH = "resource-and-stonith"


class AfterSplitBrain(enum.IntEnum):
    """Policies with their numbers in P_PROTOCOL."""

    DISCONNECT = 0
    DISCARD_YOUNGER_PRIMARY = 1
    DISCARD_OLDER_PRIMARY = 2
    DISCARD_ZERO_CHANGES = 3
    DISCARD_LEAST_CHANGES = 4
    DISCARD_LOCAL = 5
    DISCARD_REMOTE = 6
    CONSENSUS = 7
    DISCARD_SECONDARY = 8
    CALL_PRI_LOST_AFTER_SB = 9
    VIOLENTLY_AS0P = 10


@dataclass(frozen=True, slots=True)
class VolumeOptions:
    """Defaults are DRBD's where DRBD has the option."""

    resource: str
    local_name: str
    peer_name: str
    timeout_s: float = 6.0
    """An unanswered request or send is bad news after this long; dropped after ko_count times it."""
    ping_interval_s: float = 10.0
    ping_timeout_s: float = 0.5
    connect_interval_s: float = 10.0
    ko_count: int = 7
    max_epoch_size: int = 2048
    epoch_idle_s: float = 0.2
    """An open epoch is closed after this long without a write."""
    hmac_algorithm: str = ""
    """Name for hashlib ("sha256"); empty: no authentication."""
    shared_secret: str = ""
    fencing: Fencing = Fencing.DONT_CARE
    takeover: Takeover = Takeover.MANUAL
    after_sb_0pri: AfterSplitBrain = AfterSplitBrain.DISCONNECT
    after_sb_1pri: AfterSplitBrain = AfterSplitBrain.DISCONNECT
    after_sb_2pri: AfterSplitBrain = AfterSplitBrain.DISCONNECT
    al_extents: int = 1237
    resync_rate_max: int = 100 * 1024 * 1024
    """Bytes a second; 0: no limit."""
    resync_in_flight: int = 16
    """Resync requests of up to 128 KiB without an answer."""
    use_rle: bool = True
    features: Feature = FEATURES
    """What is offered to the peer."""
