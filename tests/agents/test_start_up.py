"""Start-up cost is what a monitor costs, every few seconds for years: it is held by what it may import."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

# what `/usr/bin/python3 -IS` has loaded anyway is no cost of ours
PROGRAM = """
import sys
before = set(sys.modules)
sys.path.insert(0, {library!r})
environment = {environment!r}
from agents.{module} import {agent}
code = {agent}.run_command([{action!r}], environment)
from posix import write
names = sorted(set(sys.modules) - before)
files = [name for name in names if getattr(sys.modules[name], "__file__", None)]
write(1, ("\\n" + repr((code, names, files)).replace("'", '"').replace("(", "[").replace(")", "]")).encode())
"""
CHEAP = {"__future__", "_socket", "_struct", "errno", "fcntl", "syslog"}
AGENTS = {
    "VirtualIP": ("virtual_ip", {"OCF_RESKEY_ip": "192.0.2.77"}),
    "Filesystem": (
        "filesystem",
        {"OCF_RESKEY_device": "/dev/nothing", "OCF_RESKEY_directory": "/nowhere", "OCF_RESKEY_fstype": "ext4"},
    ),
}


@pytest.mark.parametrize(
    ("agent", "action", "interval", "code"),
    [
        ("VirtualIP", "monitor", "10000", 7),
        ("VirtualIP", "monitor", "0", 7),
        ("VirtualIP", "status", "10000", 7),
        ("VirtualIP", "meta-data", "", 0),
        ("VirtualIP", "stop", "", 0),
        ("Filesystem", "monitor", "10000", 7),
        ("Filesystem", "monitor", "0", 7),
        ("Filesystem", "meta-data", "", 0),
    ],
)
def test_frequent_actions_load_nothing_but_c_modules_and_ourselves(
    installed: Path, tmp_path: Path, agent: str, action: str, interval: str, code: int
) -> None:
    module, parameters = AGENTS[agent]
    environment = {
        **parameters,
        "OCF_RESKEY_CRM_meta_interval": interval,
        "HA_RSCTMP": str(tmp_path),
    }
    library = str(installed / "usr/lib/ocf/lib/mirrorha")
    program = PROGRAM.format(library=library, environment=environment, action=action, module=module, agent=agent)
    done = subprocess.run(
        ["/usr/bin/python3", "-IS", "-c", program], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    found_code, names, files = json.loads(done.stdout.splitlines()[-1])
    assert found_code == code, done.stderr
    ours = {name for name in names if name.split(".")[0] == "agents"}
    assert set(names) - ours <= CHEAP
    assert len(ours) <= 14, "each file costs a fifth of a millisecond"
    if action == "meta-data":
        assert "agents.ocf.metadata" not in names, "the text was rendered again although the installer had done so"
    assert {name for name in files if not name.startswith("agents")} <= {"__future__"}


def test_all_of_the_library_is_byte_compiled_for_the_interpreter_of_the_stub(installed: Path) -> None:
    library = installed / "usr/lib/ocf/lib/mirrorha/agents"
    tag = subprocess.run(
        ["/usr/bin/python3", "-IS", "-c", "import sys; print(sys.implementation.cache_tag)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    sources = list(library.rglob("*.py"))
    assert len(sources) > 10
    for source in sources:
        assert (source.parent / "__pycache__" / f"{source.stem}.{tag}.pyc").is_file(), source
