"""When a file system is checked before it is mounted, and what the checker's answer means. Pure."""

from __future__ import annotations

from agents.mounts.source import is_remote

# these replay a journal or never need one
NO_CHECK = frozenset((
    "bcachefs", "btrfs", "erofs", "exfat", "ext3", "ext4", "f2fs", "gfs2", "iso9660", "jfs", "nilfs2", "ntfs", "ntfs3",
    "ocfs2", "overlay", "ramfs", "reiserfs", "squashfs", "tmpfs", "udf", "vfat", "xfs", "zfs",
))  # fmt: skip
REFUSED_FROM = 4  # fsck(8): errors left uncorrected; everything below was repaired
MEANING = (
    (128, "the checker is broken"),
    (32, "the check was cancelled"),
    (16, "the checker was called wrongly"),
    (8, "the check failed"),
    (4, "errors are left"),
    (2, "a reboot is asked for"),
    (1, "errors were corrected"),
)


def is_due(run_fsck: str, kind: str, *, is_on_device: bool) -> bool:
    """`run_fsck`: auto, force or no. `is_on_device`: is there a device or image to check at all?"""
    if run_fsck == "no" or not is_on_device or is_remote(kind):
        return False
    return run_fsck == "force" or kind not in NO_CHECK


def meaning(code: int) -> str:
    """fsck(8) adds up what it has to say; the worst is named."""
    return next((text for bit, text in MEANING if code & bit), "no errors")
