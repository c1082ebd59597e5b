"""From what was seen of an application to what the manager is told. Pure.

Three sources are asked in this order, and all that are configured must agree: the recorded process, the match by pid
file or name, the monitor script. "Not running" is said only when nothing at all is left.
"""

from __future__ import annotations

from agents.ocf.exit_code import DEGRADED, ERR_GENERIC, ERR_INSTALLED, NOT_RUNNING, SUCCESS, OcfExit
from agents.ocf.parameter import Parameter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agents.ocf.agent import Agent

# the codes a monitor script may be translated to: the others would ban nodes or speak of roles
MAPPED = {int(code): code for code in (SUCCESS, ERR_GENERIC, NOT_RUNNING, DEGRADED)}
ANY = "*"


class ExitMap(Parameter):
    """Exit code of the monitor script -> OCF exit code."""

    if TYPE_CHECKING:

        def __get__(self, instance: Agent | None, owner: type | None = None) -> Mapping[str, OcfExit]: ...

    def convert(self, text: str) -> Mapping[str, OcfExit]:
        table: dict[str, OcfExit] = {}
        for word in text.replace(",", " ").split():
            left, _, right = word.partition("=")
            known = left == ANY or (left.isascii() and left.isdigit() and int(left) < 256)
            if not (known and right.isascii() and right.isdigit() and int(right) in MAPPED):
                raise ValueError("must be pairs such as 0=0,1=7,3=7,*=1, to the right one of 0, 1, 7, 190")
            table[left if left == ANY else str(int(left))] = MAPPED[int(right)]
        return table

    def constraint(self) -> str:
        return "Pairs code=ocf separated by commas, * for all others; ocf is 0, 1, 7 or 190."


def translate(table: Mapping[str, OcfExit], code: int) -> OcfExit:
    """A code that the map leaves out, and death by a signal (a negative code), is an error."""
    if code < 0:
        return ERR_GENERIC
    return table.get(str(code), table.get(ANY, ERR_GENERIC))


def is_good(exit: OcfExit | None) -> bool:
    return exit in (SUCCESS, DEGRADED)


class Script:
    """How a stop or monitor script ended: `exit` translated, `fact` for the operator. One that hung has no exit."""

    def __init__(self, exit: OcfExit | None, fact: str, *, is_missing: bool = False) -> None:
        self.exit = exit
        self.fact = fact
        self.is_missing = is_missing


# what the processes say
COMPLETE, INCOMPLETE, NOBODY, NOT_ASKED = "complete", "incomplete", "nobody", "not asked"


class Verdict:
    """`exit` for the manager, `reason` for the operator."""

    def __init__(self, exit: OcfExit, reason: str = "") -> None:
        self.exit = exit
        self.reason = reason


def judge(
    processes: str,
    fact: str,
    ask_script: Callable[[], Script] | None,
    what_is_left: Callable[[], str],
    *,
    was_started: bool,
    is_supervised: bool,
) -> Verdict:
    """The state of an application.

    processes       COMPLETE, INCOMPLETE, NOBODY or NOT_ASKED (only a script can tell), and the `fact` behind it
    ask_script      runs the monitor script; None when none is configured
    what_is_left    looks for anything of the application; "" when there is nothing
    was_started     a start of this boot was not followed by a complete stop
    is_supervised   this is a recurring monitor: the manager believes that the application runs here
    """
    if processes == INCOMPLETE:
        return Verdict(ERR_GENERIC, fact)
    if processes == NOBODY:
        left = what_is_left()
        return Verdict(ERR_GENERIC, f"{fact}; left: {left}") if left else Verdict(NOT_RUNNING, fact)
    if ask_script is None and processes == COMPLETE:
        return Verdict(SUCCESS)
    if ask_script is None:  # parameters too broken to ask anybody
        left = what_is_left()
        return Verdict(ERR_GENERIC, f"left: {left}") if left else Verdict(NOT_RUNNING, "nothing to ask")
    script = ask_script()
    if script.exit is not None and is_good(script.exit):
        return Verdict(script.exit, script.fact if script.exit == DEGRADED else "")
    if processes == COMPLETE:
        return Verdict(ERR_GENERIC, script.fact)
    left = what_is_left()
    if left:
        return Verdict(ERR_GENERIC, f"{script.fact}; left: {left}")
    if script.is_missing:
        return Verdict(ERR_INSTALLED, script.fact)
    if script.exit == NOT_RUNNING:
        return Verdict(NOT_RUNNING, script.fact)
    # a script that fails or hangs where nothing was ever started must not pass for a second, broken copy
    return Verdict(ERR_GENERIC if was_started or is_supervised else NOT_RUNNING, script.fact)


def doubt(stop: Script | None, monitor: Script, *, had_processes: bool) -> str:
    """After the stop of an application that only its scripts know: why it may still run, "" when it surely does not.

    stop            the trouble with the stop script, None when it ended well
    had_processes   processes were known, and all of them have ended
    """
    if is_good(monitor.exit):
        return f"{monitor.fact}, so the application still runs{f'; {stop.fact}' if stop else ''}"
    if monitor.exit is not None or had_processes or stop is None:
        return ""
    if stop.is_missing and monitor.is_missing:
        return ""  # where the software is missing nothing of it can run
    return f"the application may still run: {stop.fact}; {monitor.fact}"
