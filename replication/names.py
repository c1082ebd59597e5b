"""A name that nobody knows -> the one that was perhaps meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """A question for an error's remedy; empty when nothing is like it."""
    found = difflib.get_close_matches(name[:100], list(known), n=1)
    return f'did you mean "{found[0]}"?' if found else ""
