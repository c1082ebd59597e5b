from __future__ import annotations

import pytest

from agents.mounts.check import is_due, meaning


@pytest.mark.parametrize(
    ("run_fsck", "kind", "on_device", "answer"),
    [
        ("auto", "ext2", True, True),
        ("auto", "ext4", True, False),
        ("auto", "xfs", True, False),
        ("auto", "minix", True, True),
        ("auto", "nfs4", True, False),
        ("auto", "tmpfs", False, False),
        ("force", "ext4", True, True),
        ("force", "nfs4", False, False),
        ("no", "ext2", True, False),
    ],
)
def test_what_has_no_journal_is_checked_unless_told_otherwise(
    run_fsck: str, kind: str, on_device: bool, answer: bool
) -> None:
    assert is_due(run_fsck, kind, is_on_device=on_device) == answer


@pytest.mark.parametrize(
    ("code", "text"), [(0, "no errors"), (1, "errors were corrected"), (5, "errors are left"), (12, "the check failed")]
)
def test_of_all_that_a_check_says_the_worst_is_named(code: int, text: str) -> None:
    assert meaning(code) == text
