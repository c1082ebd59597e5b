"""What hardens a process either works or is said to be refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]

PROGRAM = """
import json, pathlib
from replication.hardening import harden, io_flusher_granted
warnings = harden()
status = pathlib.Path("/proc/self/status").read_text()
locked = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmLck")][0]
score = int(pathlib.Path("/proc/self/oom_score_adj").read_text())
print(json.dumps([warnings, locked > 0, io_flusher_granted(), score == -1000]))
"""


def test_a_hardened_process_has_what_it_asked_for_or_says_what_was_refused() -> None:
    outcome = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=PROJECT, check=True, stdout=subprocess.PIPE, timeout=20
    ).stdout
    warnings, memory_locked, io_flusher, spared = json.loads(outcome)
    said = [any(word in warning for warning in warnings) for word in ("not locked", "PR_SET_IO_FLUSHER", "OOM score")]
    assert said == [not memory_locked, not io_flusher, not spared]
    assert all("grant CAP_" in warning for warning in warnings)
