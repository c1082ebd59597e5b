"""Agent: reads OCF_RESKEY_*, runs one action, turns errors into exit codes.

    class Lamp(Agent):
        \"\"\"Keeps one lamp lit.\"\"\"
        socket = Text("Wall socket", required=True, unique=True)

        @action(timeout_s=20, interval_s=10)
        def monitor(self) -> OcfExit: ...

The manager calls the executable with one argument, the action. The order of events for each: the deadline is armed,
parameters are checked (strictly for start, leniently for stop and monitor), the method runs, its exit code is adjusted
to what the manager can bear (a stop that says "not running" would fence the node), the reason is printed once.
"""

from __future__ import annotations

import posix
import sys
import time

from agents.ocf.action import ActionRow, action
from agents.ocf.exit_code import (
    ERR_CONFIGURED,
    ERR_GENERIC,
    ERR_PERM,
    ERR_UNIMPLEMENTED,
    NOT_RUNNING,
    RUNNING_PROMOTED,
    SUCCESS,
    AgentError,
    DeadlineExpired,
    OcfExit,
    ParameterError,
)
from agents.ocf.log import STDERR, Log, printable, write_all
from agents.ocf.parameter import Parameter
from agents.ocf.signals import SIGALRM, alarm_in, on_signal
from agents.ocf.state import Record, read_small

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType, TracebackType
    from typing import Any, NoReturn

    from agents.ocf.node import Node

# Share of the operation's time-out an action may use: the rest is for its last words before the manager's SIGKILL.
DEADLINE_SHARE = 0.8
DEFAULT_TIMEOUT_MS = 20_000
REASON_LIMIT = 128  # bytes, what the manager keeps
# These must work while parameters are wrong: a value that does not convert is replaced by its default.
LENIENT = frozenset(("stop", "monitor", "demote", "notify"))
SYNONYMS = {"status": "monitor"}


class Agent:
    """Base of all agents. A subclass declares parameters and actions; its docstring describes the resource."""

    provider = "mirrorha"

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.instance = environment.get("OCF_RESOURCE_INSTANCE") or "default"
        self.action_name = ""
        self.doing = "working"  # what a deadline would have interrupted; kept up to date by the actions
        self.log = Log(f"{type(self).__name__}({self.instance})", environment)
        self._values: dict[str, Any] = {}
        self._deadline: float | None = None

    # --- what an agent may ask -----------------------------------------------------------------------------------

    @property
    def is_probe(self) -> bool:
        """Is this a monitor that asks "is it running here?" before anything was started? Its interval is unset or 0."""
        interval = self.environment.get("OCF_RESKEY_CRM_meta_interval", "").strip()
        return self.action_name == "monitor" and interval in ("", "0")

    @property
    def check_level(self) -> int:
        """OCF_CHECK_LEVEL: 0 cheap, 10 deeper and read-only, 20 intrusive."""
        text = self.environment.get("OCF_CHECK_LEVEL", "").strip()
        return int(text) if text.isascii() and text.isdigit() else 0

    @property
    def timeout_s(self) -> float:
        """Time-out of this operation in seconds, as the manager will enforce it; 20 when it does not say."""
        text = self.environment.get("OCF_RESKEY_CRM_meta_timeout", "").strip()
        return (int(text) if text.isascii() and text.isdigit() and int(text) > 0 else DEFAULT_TIMEOUT_MS) / 1000

    @property
    def time_left_s(self) -> float:
        """Seconds until our own deadline (80 % of the time-out), for waits that want to end in good order."""
        if self._deadline is None:
            return self.timeout_s * DEADLINE_SHARE
        return max(0.0, self._deadline - time.monotonic())

    @property
    def state_directory(self) -> str:
        return self.environment.get("HA_RSCTMP") or "/run/resource-agents"

    def record(self, purpose: str) -> Record:
        """The record of this resource for one purpose, in the per-boot directory."""
        return Record(self.state_directory, f"{type(self).__name__}-{self.instance}-{purpose}")

    @property
    def node(self) -> Node:
        from agents.ocf.node import Node  # not needed by a monitor

        return Node(self.environment)

    # --- parameters ----------------------------------------------------------------------------------------------

    @classmethod
    def parameters(cls) -> list[Parameter]:
        """In order of declaration, base classes first."""
        found: dict[str, Parameter] = {}
        for owner in reversed(cls.__mro__):
            found.update((name, value) for name, value in vars(owner).items() if isinstance(value, Parameter))
        return list(found.values())

    def value_of(self, parameter: Parameter) -> Any:
        """Converted value. Raises ParameterError (6) when it is missing or malformed and no default may stand in."""
        name = parameter.name
        if name not in self._values:
            self._values[name] = self._convert(parameter)
        return self._values[name]

    def _convert(self, parameter: Parameter) -> Any:
        text = parameter.raw(self.environment)
        try:
            if text:
                return parameter.convert(text)
            if parameter.required:
                raise ParameterError(parameter.name, "is missing")
            return parameter.absent()
        except ValueError as error:
            if parameter.required or self.action_name not in LENIENT:
                got = "" if parameter.private else f", not {text!r}"
                raise ParameterError(parameter.name, f"{error}{got}") from None
            self.log.warning(f"parameter {parameter.name} {error}; {self.action_name} uses the default instead")
            return parameter.convert(parameter.default) if parameter.default else parameter.absent()

    def check(self) -> None:
        """Do the parameters agree with each other? Override and raise AgentError (6) if no node could run this."""

    def check_node(self) -> None:
        """Can *this* node run it? Override and raise AgentError (2 or 5). Runs at start and at OCF_CHECK_LEVEL 10."""

    @action(timeout_s=10)
    def validate_all(self) -> OcfExit:
        self._check_all()
        if self.check_level >= 10:
            self.check_node()
        return SUCCESS

    def _check_all(self) -> None:
        for parameter in self.parameters():
            self.value_of(parameter)
        self.check()

    # --- one action ----------------------------------------------------------------------------------------------

    @classmethod
    def actions(cls) -> dict[str, tuple[ActionRow, ...]]:
        """Action name -> its rows, in order of declaration, the agent's own before the inherited ones."""
        found: dict[str, tuple[ActionRow, ...]] = {}
        for owner in cls.__mro__:
            for name, value in vars(owner).items():
                if hasattr(value, "ocf_rows"):
                    found.setdefault(name.replace("_", "-"), value.ocf_rows)
        return found

    def perform(self, name: str) -> tuple[OcfExit, str]:
        """Run one action. Returns the exit code for the manager and the reason for the operator ("" if all is well)."""
        name = SYNONYMS.get(name, name)
        self.action_name = name
        method = getattr(type(self), name.replace("-", "_"), None)
        if not hasattr(method, "ocf_rows"):
            return ERR_UNIMPLEMENTED, ""
        try:
            broken = self._broken_identity() if name in ("stop", "monitor") else None
            if broken is not None:
                return self._without_identity(broken)
            if name not in LENIENT and name != "validate-all":
                self._check_all()
            assert method is not None
            exit_code, reason = method(self), ""
        except AgentError as error:
            exit_code, reason = error.exit, error.reason
        except PermissionError as error:
            exit_code, reason = ERR_PERM, f"{name} was not permitted {self._what_failed(error)}; run it as root"
        except OSError as error:
            exit_code, reason = ERR_GENERIC, f"{name} failed {self._what_failed(error)}"
        return self._bearable(exit_code, reason)

    def _what_failed(self, error: OSError) -> str:
        where = f"{error.filename}: " if error.filename else ""
        return f"while {self.doing}: {where}{error.strerror or error}"

    def _broken_identity(self) -> ParameterError | None:
        """Without its required parameters a resource cannot even be recognised."""
        try:
            for parameter in self.parameters():
                if parameter.required:
                    self.value_of(parameter)
        except ParameterError as error:
            return error
        return None

    def _without_identity(self, error: ParameterError) -> tuple[OcfExit, str]:
        """Nothing can have been started under such parameters: stop has nothing to do, a probe finds nothing."""
        if self.action_name == "stop":
            self.log.warning(f"nothing to stop: {error.reason}")
            return SUCCESS, ""
        if self.is_probe:
            return NOT_RUNNING, ""
        return error.exit, error.reason

    def _bearable(self, code: OcfExit, reason: str) -> tuple[OcfExit, str]:
        """What the manager makes of a code decides which ones an action may end with (its table of reactions)."""
        name = self.action_name
        if name == "stop" and code == NOT_RUNNING:
            return SUCCESS, ""  # any code but 0 from stop fences the node, even 7
        if name == "stop" and code != SUCCESS:
            return ERR_GENERIC, reason or f"stop failed: {code!r}"
        if name == "start" and code in (NOT_RUNNING, RUNNING_PROMOTED):
            return ERR_GENERIC, reason or f"start ended with {code!r}"
        if self.is_probe and 2 <= code <= ERR_CONFIGURED:
            self.log.info(f"not running here: {reason}")
            return NOT_RUNNING, ""  # it cannot run here, so it does not; a ban would be start's answer
        if name == "notify":
            return SUCCESS, reason  # advisory, must not fail
        return code, reason

    # --- the process ---------------------------------------------------------------------------------------------

    @classmethod
    def main(cls) -> NoReturn:
        """The whole process: sys.argv and the environment in, exit code, reason and log lines out."""
        posix._exit(cls.run_command(sys.argv[1:], text_environment()))

    @classmethod
    def run_command(cls, arguments: list[str], environment: Mapping[str, str]) -> int:
        """As `main`, for a caller that wants to go on living."""
        name = arguments[0] if len(arguments) == 1 else ""
        if name == "meta-data":
            return 0 if write_all(1, cls.metadata()) else 1
        if name in ("-h", "--help", "help", "usage"):
            write_all(1, cls.usage())
            return 0
        if SYNONYMS.get(name, name) not in cls.actions():
            write_all(STDERR, cls.usage())
            return int(ERR_UNIMPLEMENTED)
        posix.umask(0o022)
        posix.chdir("/")
        agent = cls(environment)
        sys.excepthook = agent._report_bug
        agent._arm_deadline(name)
        code, reason = agent.perform(name)
        alarm_in(0)
        if reason:
            agent.tell(reason)
        return int(code)

    def _arm_deadline(self, name: str) -> None:
        limit = self.timeout_s * DEADLINE_SHARE

        def expire(signal_number: int, frame: FrameType | None) -> None:
            raise DeadlineExpired(name, limit, self.timeout_s, self.doing)

        self._deadline = time.monotonic() + limit
        on_signal(SIGALRM, expire)
        alarm_in(limit)

    def tell(self, reason: str) -> None:
        """Print the exit reason and log it. The manager shows the last one printed, cut at 128 characters."""
        text = printable(" ".join(reason.split()))  # the manager puts it into XML
        data = text.encode()
        shown = text if len(data) <= REASON_LIMIT else data[: REASON_LIMIT - 3].decode("utf-8", "ignore") + "..."
        prefix = self.environment.get("OCF_EXIT_REASON_PREFIX") or "ocf-exit-reason:"
        write_all(STDERR, f"{prefix}{shown}\n")
        self.log.error(text)

    def _report_bug(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Last words of a bug: the interpreter exits with 1 after this."""
        sys.__excepthook__(kind, error, trace)
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}" if trace else "?"
        self.tell(f"{self.action_name} met a bug of the agent, {kind.__name__}: {error} ({where}); please report it")

    @classmethod
    def metadata(cls) -> str:
        """The XML that the installer rendered, or else rendered now."""
        stored = read_small(f"{__file__.rpartition('/agents/')[0]}/metadata/{cls.__name__}.xml")
        return stored or cls.render_metadata()

    @classmethod
    def render_metadata(cls) -> str:
        from agents.ocf.metadata import render

        return render(cls.__name__, cls.__doc__ or cls.__name__, cls.parameters(), cls.actions())

    @classmethod
    def usage(cls) -> str:
        names = " | ".join([*cls.actions(), "meta-data"])
        return (
            f"usage: {cls.__name__} {{ {names} }}\n"
            f"OCF resource agent ocf:{cls.provider}:{cls.__name__}: {(cls.__doc__ or '').strip().splitlines()[0]}\n"
            "Parameters are read from environment variables OCF_RESKEY_<name>.\n"
            f"Example: OCF_ROOT=/usr/lib/ocf OCF_RESKEY_{next((p.name for p in cls.parameters()), 'x')}=... "
            f"/usr/lib/ocf/resource.d/{cls.provider}/{cls.__name__} validate-all\n"
        )


def text_environment() -> dict[str, str]:
    """The process environment as text (`os.environ` without the cost of importing `os`)."""
    return {
        key.decode("utf-8", "surrogateescape"): value.decode("utf-8", "surrogateescape")
        for key, value in posix.environ.items()
    }


__all__ = ["Agent", "action"]
