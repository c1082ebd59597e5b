"""Exit codes of the OCF resource agent API 1.1, and the error that carries one.

AgentError            the action ends with `exit` and tells the operator `reason`
  ParameterError      a parameter is missing or malformed (6: no node could run this)
  DeadlineExpired     80 % of the operation's time-out are over (1)
"""


class OcfExit(int):
    """One exit code. A plain int with a name, since `enum` would cost each monitor 5 ms."""

    name: str
    meaning: str

    def __new__(cls, value: int, name: str, meaning: str) -> "OcfExit":
        code = super().__new__(cls, value)
        code.name = name
        code.meaning = meaning
        return code

    def __repr__(self) -> str:
        return f"{self.name} ({int(self)})"


SUCCESS = OcfExit(0, "SUCCESS", "ok")
ERR_GENERIC = OcfExit(1, "ERR_GENERIC", "error")
ERR_ARGS = OcfExit(2, "ERR_ARGS", "a parameter does not suit this node; the manager bans this node")
ERR_UNIMPLEMENTED = OcfExit(3, "ERR_UNIMPLEMENTED", "no such action")
ERR_PERM = OcfExit(4, "ERR_PERM", "insufficient privileges; the manager bans this node")
ERR_INSTALLED = OcfExit(5, "ERR_INSTALLED", "something is not installed on this node; the manager bans this node")
ERR_CONFIGURED = OcfExit(6, "ERR_CONFIGURED", "no node can run this; the manager bans every node")
NOT_RUNNING = OcfExit(7, "NOT_RUNNING", "cleanly stopped")
RUNNING_PROMOTED = OcfExit(8, "RUNNING_PROMOTED", "running in the promoted role")
FAILED_PROMOTED = OcfExit(9, "FAILED_PROMOTED", "failed in the promoted role")
DEGRADED = OcfExit(190, "DEGRADED", "running, likely to fail soon")
DEGRADED_PROMOTED = OcfExit(191, "DEGRADED_PROMOTED", "running promoted, likely to fail soon")


class AgentError(Exception):
    """Ends the action with `exit`; `reason` names object, fact and remedy, the essential within 100 characters."""

    def __init__(self, exit: OcfExit, reason: str) -> None:
        super().__init__(reason)
        self.exit = exit
        self.reason = reason


class ParameterError(AgentError):
    """A parameter that no node could use: missing, or not of its type."""

    def __init__(self, name: str, fact: str) -> None:
        super().__init__(ERR_CONFIGURED, f"parameter {name} {fact}")
        self.name = name


class DeadlineExpired(AgentError):
    """The action used up its share of the operation's time-out; the manager would SIGKILL it soon."""

    def __init__(self, action: str, limit_s: float, timeout_s: float, doing: str) -> None:
        super().__init__(
            ERR_GENERIC,
            f"{action} gave up after {limit_s:g} s (time-out {timeout_s:g} s) while {doing}; "
            "raise the operation's timeout if that is normal",
        )
