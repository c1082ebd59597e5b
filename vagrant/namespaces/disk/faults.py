"""The faults a disk has been given, and what a request meets because of them. Pure.

Faults add up until they are cleared: a disk may be slow and full at once.
"""

from enum import StrEnum
from typing import Any, NamedTuple


class Refusal(Exception):
    """An order that cannot be carried out: the fact, and what to say instead."""

    def __init__(self, fact: str, remedy: str) -> None:
        super().__init__(f"{fact}; {remedy}")
        self.fact = fact
        self.remedy = remedy


class Operation(StrEnum):
    """What a fault tells apart. Trimming and zeroing count as writing."""

    READ = "read"
    WRITE = "write"
    FLUSH = "flush"


class BadRange(NamedTuple):
    """Operations that fail, and the bytes `first` to `last` (both included) where they do. A flush fails anywhere."""

    operations: frozenset[Operation]
    first: int
    last: int

    def hits(self, operation: Operation, offset_bytes: int, length_bytes: int) -> bool:
        """Whether the operation touches the bad bytes."""
        if operation not in self.operations:
            return False
        return operation is Operation.FLUSH or (offset_bytes <= self.last and offset_bytes + length_bytes > self.first)


class Faults(NamedTuple):
    """All faults of one disk; the default is a sound one."""

    bad_range: BadRange | None = None
    slow_ms: int = 0
    hung: bool = False
    full: bool = False

    def fails(self, operation: Operation, offset_bytes: int, length_bytes: int) -> bool:
        """Whether the request has to be answered with an input/output error."""
        return self.bad_range is not None and self.bad_range.hits(operation, offset_bytes, length_bytes)

    def names(self) -> list[str]:
        """The faults in force, in the words of the orders that made them."""
        inforce = {"error": self.bad_range is not None, "slow": self.slow_ms > 0, "hang": self.hung, "full": self.full}
        return [name for name, there in inforce.items() if there]


def after_order(faults: Faults, verb: str, order: dict[str, Any], size_bytes: int) -> Faults | None:
    """The faults after one order of the control socket, or None if the verb is no fault. Raises Refusal."""
    if verb == "ok":
        return Faults()
    if verb == "hang":
        return faults._replace(hung=True)
    if verb == "full":
        return faults._replace(full=True)
    if verb == "slow":
        return faults._replace(slow_ms=_number(order, "ms", None, 0, 3_600_000))
    if verb == "error":
        return faults._replace(bad_range=_bad_range(order, size_bytes))
    return None


def _bad_range(order: dict[str, Any], size_bytes: int) -> BadRange:
    names = order.get("operations", [operation.value for operation in Operation])
    known = [operation.value for operation in Operation]
    if not isinstance(names, list) or not names or not all(name in known for name in names):
        raise Refusal(f"operations {names!r} are not known", f"give a list of {', '.join(known)}")
    first = _number(order, "first", 0, 0, size_bytes - 1)
    last = _number(order, "last", size_bytes - 1, first, size_bytes - 1)
    return BadRange(frozenset(Operation(name) for name in names), first, last)


def _number(order: dict[str, Any], key: str, default: int | None, minimum: int, maximum: int) -> int:
    value = order.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise Refusal(f"{key} is {value!r}", f"give a whole number from {minimum} to {maximum}")
    return value
