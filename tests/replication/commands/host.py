"""A host below a directory, on which mirroradm can be typed."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.replication.statuses import status

PROJECT = Path(__file__).resolve().parents[3]
DAEMON = Path(__file__).parent / "programs" / "mirrord.py"

RES = """\
resource {name} {{
    on {here} {{ device minor {minor}; disk {disk}; meta-disk internal; address 10.0.0.1:{port}; }}
    on beta {{ device minor {minor}; disk /dev/vg/{name}; meta-disk internal; address 10.0.0.2:{port}; }}
}}
"""


class Host:
    """A host of its own below a directory: configuration, sockets, logs, and a script for its daemons."""

    def __init__(self, directory: Path) -> None:
        self.configuration = directory / "mirror.d"
        self.runtime = directory / "run"
        self.logs = directory / "log"
        self.script = directory / "script"
        self.asked = directory / "script.asked"
        self.disk = directory / "disk"
        self.configuration.mkdir()
        self.play(status=status())

    def play(self, **script: Any) -> None:
        """What daemons started from now on do; see programs/mirrord.py."""
        self.script.write_text(json.dumps({"status": status()} | script))

    def define(self, name: str = "r0", number: int = 0) -> None:
        disk = self.disk if name == "r0" else self.disk.with_name(f"disk-of-{name}")
        text = RES.format(name=name, here=os.uname().nodename, minor=number, port=7789 + number, disk=disk)
        (self.configuration / f"{name}.res").write_text(text)

    def command(self, *words: str) -> list[str]:
        options = ["-c", str(self.configuration), "--runtime-directory", str(self.runtime)]
        daemon = shlex.join([sys.executable, str(DAEMON), "--script", str(self.script)])
        options += ["--log-directory", str(self.logs), "--mirrord", daemon]
        return [sys.executable, "-m", "replication.commands.mirroradm", *options, *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), cwd=PROJECT, capture_output=True, text=True, timeout=60, env=self.environment()
        )

    def environment(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": str(PROJECT)}

    def up(self, name: str = "r0") -> None:
        done = self.run("up", name)
        assert done.returncode == 0, done.stderr

    def questions(self) -> list[Any]:
        return [json.loads(line) for line in self.asked.read_text().splitlines()] if self.asked.exists() else []
