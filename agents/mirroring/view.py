"""One side of a mirror as `mirroradm status --json` shows it, and what an agent has to know of it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

PRIMARY, SECONDARY = "Primary", "Secondary"
UP_TO_DATE = "UpToDate"
CONNECTED, HANDSHAKE = "Connected", "WFReportParams"


class View:
    """States are DRBD's words."""

    def __init__(
        self,
        role: str,
        disk: str,
        connection: str,
        peer_role: str,
        device: str,
        is_eligible: bool,
        reason: str,
        remedy: str,
        *,
        is_in_handshake: bool = False,
    ) -> None:
        self.role = role
        self.disk = disk
        self.connection = connection
        self.peer_role = peer_role
        self.device = device
        """Path of the block device; "" while there is none."""
        self.is_eligible = is_eligible
        """Whether mirrord would let this side become Primary now, or it is."""
        self.reason = reason
        """Why not, or why something is not well; "" when all is."""
        self.remedy = remedy
        self.is_in_handshake = is_in_handshake
        """The two have just found each other and not yet compared what they hold."""

    @classmethod
    def of(cls, status: Mapping[str, Any]) -> View:
        """From one element of the JSON list. Raises ValueError when it is something else."""
        try:
            mirror, connection = status["mirror"], status["connections"][0]
            device = status["devices"][0]
            return cls(
                str(status["role"]),
                str(device["disk-state"]),
                str(connection["connection-state"]),
                str(connection["peer-role"]),
                str(device["device"] or ""),
                mirror["eligible"] is True,
                str(mirror["reason"] or ""),
                str(mirror["remedy"] or ""),
                is_in_handshake=mirror["cs"] == HANDSHAKE,
            )
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"status without {error}") from None

    @property
    def is_promoted(self) -> bool:
        return self.role == PRIMARY

    @property
    def has_met(self) -> bool:
        """Has it compared its data with the peer's in this connection?"""
        return self.connection == CONNECTED

    @property
    def why(self) -> str:
        """Reason and remedy, for an exit reason."""
        return f"{self.reason}; {self.remedy}" if self.reason and self.remedy else self.reason

    @property
    def fault_of_promoted(self) -> str:
        """Why a Primary serves nobody; "" when it does, as far as mirrord knows."""
        if self.disk != UP_TO_DATE:
            return self.why or f"the disk is {self.disk}"
        return "" if self.device else self.why or "its device is gone"

    @property
    def may_be_promoted_in_a_moment(self) -> bool:
        """Does a refusal depend on something that is under way? The peer's word that it has been demoted, say."""
        return self.is_in_handshake or (self.has_met and self.peer_role != SECONDARY)
