"""Mounted file systems: what is mounted where, is it ours and well, who uses it, how to end that."""
