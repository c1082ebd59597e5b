"""Which methods of an agent are OCF actions, and what the meta-data says about them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from agents.ocf.exit_code import OcfExit

    ActionMethod = TypeVar("ActionMethod", bound=Callable[[Any], OcfExit])


class ActionRow:
    """What the meta-data says about an action: time-out and interval in seconds, check level, role. Advice only."""

    def __init__(self, timeout_s: int, interval_s: int | None = None, depth: int | None = None, role: str = "") -> None:
        self.timeout_s = timeout_s
        self.interval_s = interval_s
        self.depth = depth
        self.role = role


def action(
    *, timeout_s: int, interval_s: int | None = None, depth: int | None = None, role: str = ""
) -> Callable[[ActionMethod], ActionMethod]:
    """Declare a method as OCF action (`reload_agent` is `reload-agent`); repeat it for more check levels or roles."""

    def declare(method: ActionMethod) -> ActionMethod:
        row = ActionRow(timeout_s, interval_s, depth, role)
        method.ocf_rows = (row, *getattr(method, "ocf_rows", ()))  # type: ignore[attr-defined]
        return method

    return declare
