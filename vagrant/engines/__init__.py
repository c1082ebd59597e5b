"""Cluster engines the laboratory can run on its nodes. An engine is files to lay down and programs to start at boot."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from pathlib import Path

from vagrant.description import LabDescription


class Fencing(enum.Enum):
    """How a lost node is made sure to be off."""

    POWER_SWITCH = "power-switch"
    NONE = "none"


class Engine(ABC):
    """One way to run a cluster."""

    name: str

    @abstractmethod
    def install(self, lab: LabDescription, node: str, fencing: Fencing, root: Path) -> list[list[str]]:
        """Write the engine's files below `root`, the node's file system; returns the programs to start at each boot.

        Raises OSError, and LookupError when the engine's software is not installed.
        """
