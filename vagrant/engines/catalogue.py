"""Every engine by its name."""

from __future__ import annotations

from pathlib import Path

from vagrant.description import LabDescription
from vagrant.engines import Engine, Fencing


class NoEngine(Engine):
    """Nodes with nothing but their operating system."""

    name = "none"

    def install(self, lab: LabDescription, node: str, fencing: Fencing, root: Path) -> list[list[str]]:
        return []


def engine(name: str) -> Engine:
    """The engine called `name`. Raises ValueError for one that nobody wrote."""
    if name == "none":
        return NoEngine()
    if name == "debian":
        from vagrant.engines.debian import Debian  # jinja2 costs 0.1 s that an engineless laboratory need not pay

        return Debian()
    raise ValueError(f'unknown engine "{name}"; choose none or debian')
