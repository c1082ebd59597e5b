from __future__ import annotations

from pathlib import Path

from agents.supervision.lock import Lock


def test_a_second_action_waits_and_then_goes_without_the_lock(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with Lock(path, patience_s=0) as first:
        assert first
        with Lock(path, patience_s=0) as second:
            assert not second
    with Lock(path, patience_s=0) as third:
        assert third


def test_a_machine_without_the_state_directory_gets_one(tmp_path: Path) -> None:
    with Lock(str(tmp_path / "resource-agents" / "lock"), patience_s=0) as locked:
        assert locked
