"""What is copied over a node's file system before it boots: this checkout's agents, where Pacemaker looks for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
AGENTS_LAYER = PROJECT / "build" / "lab" / "agents"


class Layers:
    """Directories for `Lab(layers=...)`."""

    @staticmethod
    def build(directory: Path = AGENTS_LAYER) -> tuple[Path, ...]:
        """Install the agents below `directory`. Raises subprocess.CalledProcessError when the installer fails."""
        directory.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [sys.executable, "-m", "agents.install", "--root", str(directory)],
            cwd=PROJECT, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return (directory,)
