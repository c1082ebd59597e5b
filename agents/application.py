"""ocf:mirrorha:Application, in the place of heartbeat:anything and of start/stop/monitor scripts.

The file asks and acts; what is decided is in `agents.supervision`: who belongs (`belonging`), is it well (`health`),
how a stop divides its time (`escalation`). A monitor of a recorded process imports nothing beyond this file's head.
"""

from __future__ import annotations

import posix
import time

from agents.ocf.agent import DEADLINE_SHARE, Agent, action
from agents.ocf.exit_code import (
    ERR_CONFIGURED,
    ERR_GENERIC,
    NOT_RUNNING,
    SUCCESS,
    AgentError,
    DeadlineExpired,
    OcfExit,
)
from agents.ocf.parameter import Choice, Integer, Seconds, Text
from agents.ocf.process import Process, start_ticks
from agents.supervision import health
from agents.supervision.command_line import CommandLine, Invocation
from agents.supervision.escalation import SignalName
from agents.supervision.health import ExitMap, Script, Verdict, judge
from agents.supervision.surroundings import Assignments, FileMask, Path
from agents.supervision.trace import Trace
from agents.supervision.watch import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from agents.ocf.node import Completed
    from agents.supervision.belonging import Entry
    from agents.supervision.launch import Launch
    from agents.supervision.output import Output

POLL_S = (0.05, 0.5)  # first and longest pause between two looks at an application that is becoming ready
# Processes whose only sign of health is that they live must live this long: a wrong configuration ends them sooner.
SETTLE_S = 0.25
# An action ends itself this much before the deadline would end it, because it can say what it was waiting for.
LAST_WORDS_S = 0.2
# How long a stop waits for another action on the same application: a hung start must not make it fail.
STOP_PATIENCE_S = 2.0
NEVER = 86_400.0


class Application(Agent):
    """Runs an application, by one long-running program or by start, stop and monitor scripts.

    Give either command, a program that stays in the foreground and is supervised, or start_script, a program that
    starts the application and ends. The start succeeds only when the application is well: its process lives, as many
    processes as wanted are found, and the monitor script agrees. The stop runs the stop script, then sends the stop
    signal, then SIGKILL, to all that the application has started, and succeeds only when nothing of it is left.

    Scripts and programs run as the given user, in a clean environment, with standard input from /dev/null.
    """

    command = CommandLine(
        "Program to keep running",
        "Program that stays in the foreground; it is started in a session of its own and its process supervised. "
        "If it moves to the background by itself, give pidfile or process_name too.",
    )
    start_script = CommandLine(
        "Program that starts the application",
        "Program that starts the application and ends with 0; the application goes on in the background.",
    )
    stop_script = CommandLine(
        "Program that stops the application",
        "Program that asks the application to end. It may use two thirds of the stop operation's time-out; whatever is "
        "left of the application then gets the stop signal.",
        reloadable=True,
    )
    monitor_script = CommandLine(
        "Program that checks the application", "Program whose exit code tells how the application is.", reloadable=True
    )
    monitor_rc_map = ExitMap(
        "Meaning of the monitor script's exit codes",
        "Translation of the monitor script's exit codes to OCF codes; 0=0,1=7,3=7,*=1 suits LSB init scripts.",
        default="0=0,*=1",
        reloadable=True,
    )
    monitor_timeout = Seconds(
        "Limit of the monitor script",
        "A monitor script that runs longer is killed and counts as failed; by default that happens at 80 % of the "
        "operation's time-out.",
        reloadable=True,
    )
    pidfile = Path("Pid file of the application", "File in which the application itself keeps its process id.")
    process_name = Text(
        "Name of the application's processes",
        "Command name, or base name of the program, that the application's processes show.",
        reloadable=True,
    )
    process_user = Text(
        "Owner of the application's processes",
        "Only processes of this user are found by process_name or pidfile; by default that of the parameter user.",
        reloadable=True,
    )
    process_min = Integer(
        "Processes that must be found",
        "How many processes called process_name a healthy application has at least.",
        default=1,
        minimum=1,
        reloadable=True,
    )
    user = Text("User to run as", "User as whom the program and the scripts run.", default="root")
    group = Text("Group to run as", "Primary group; by default that of the user. The user's other groups are set too.")
    workdir = Path("Working directory", "Directory in which the program and the scripts start.", default="/")
    env = Assignments("Environment variables", "Variables added to the environment of the program and the scripts.")
    umask = FileMask("File mode mask", "Mode bits that files of the program and the scripts do not get.", default="022")
    logfile = Path(
        "File for the output",
        "File to which the output of the program and of the start script is appended, with the rights of the user. "
        "Without it the program's output is discarded.",
    )
    ready_wait = Seconds(
        "Time to become ready",
        "How long a start waits for the application to be well; by default until the start operation's deadline.",
        reloadable=True,
    )
    stop_signal = SignalName("Stop signal", "Signal that asks the application to end.", default="TERM", reloadable=True)
    stop_wait = Seconds(
        "Time to obey the stop signal",
        "How long to wait before SIGKILL; by default two thirds of the stop operation's time-out.",
        reloadable=True,
    )
    kill_wait = Seconds("Time to vanish after SIGKILL", default="5s", reloadable=True)
    kill_scope = Choice(
        "How far signals reach",
        "process: the started program, and what pidfile or process_name name. group: their process groups too. "
        "session: all that the application has started, found by session, parentage and a mark in the environment.",
        options=("process", "group", "session"),
        default="session",
    )

    def check(self) -> None:
        if bool(self.command) == bool(self.start_script):
            raise AgentError(ERR_CONFIGURED, "one of command and start_script is needed, and not both")
        if self.start_script and not (self.monitor_script or self.pidfile or self.process_name):
            fact = "start_script alone leaves nothing to monitor; give monitor_script, pidfile or process_name"
            raise AgentError(ERR_CONFIGURED, fact)

    def check_node(self) -> None:
        from agents.supervision.launch import find_user, require_directory

        find_user(self.user, self.group)
        if self.process_user:
            find_user(self.process_user, "")
        require_directory(self.workdir)
        for invocation in (self.command, self.start_script, self.stop_script, self.monitor_script):
            if invocation:
                self.node.find_program(invocation.arguments[0])

    # --- actions -------------------------------------------------------------------------------------------------

    @action(timeout_s=20, interval_s=15)
    def monitor(self) -> OcfExit:
        verdict = self.verdict(self.trace(), is_supervised=not self.is_probe)
        if verdict.exit == SUCCESS or (self.is_probe and verdict.exit == NOT_RUNNING):
            return verdict.exit
        raise AgentError(verdict.exit, verdict.reason)

    @action(timeout_s=60)
    def start(self) -> OcfExit:
        with self.lock(self.time_left_s - LAST_WORDS_S) as is_alone:
            if not is_alone:
                raise AgentError(ERR_GENERIC, f"another action on {self.instance} is still running; wait for its end")
            trace = self.trace()
            # a monitor script that hangs here must leave time to start
            verdict = self.verdict(trace, is_supervised=False, limit_s=self.time_left_s / 3)
            if health.is_good(verdict.exit):
                return SUCCESS
            self.check_node()
            if verdict.exit == ERR_GENERIC:
                self.log.warning(f"found half running, stopped before the start: {verdict.reason}")
                self.end(trace, limit_s=self.time_left_s / 2)
            self.begin()
        return SUCCESS

    @action(timeout_s=60)
    def stop(self) -> OcfExit:
        with self.lock(min(STOP_PATIENCE_S, self.time_left_s / 4)) as is_alone:
            if not is_alone:
                # stopping is always right, and a hung start of somebody else must not make it fail
                self.log.warning(f"another action on {self.instance} is running; stopping nevertheless")
            self.end_abandoned_script()
            self.end(self.trace(), limit_s=self.time_left_s - LAST_WORDS_S)
        return SUCCESS

    @action(timeout_s=10)
    def reload_agent(self) -> OcfExit:
        return SUCCESS  # every action reads the parameters afresh

    def lock(self, patience_s: float) -> AbstractContextManager[bool]:
        """Raises AgentError when the state directory is unusable: then nothing that is started could be found again."""
        from agents.supervision.lock import Lock, Unlocked

        path = self.record("lock").path
        try:
            return Lock(path, patience_s)
        except OSError as error:
            fact = f"{path} cannot be opened ({error.strerror})"
            if self.action_name != "stop":
                raise AgentError(ERR_GENERIC, f"{fact}; make room or make it writable") from None
            self.log.warning(f"{fact}; stopping without lock")
            return Unlocked()

    # --- how is it? ----------------------------------------------------------------------------------------------

    @property
    def watch(self) -> Watch:
        return Watch(
            self.instance,
            is_supervised=bool(self.command),
            pidfile=self.pidfile,
            process_name=self.process_name,
            process_min=self.process_min,
            owner=self.process_user or self.user,
            scope=self.kill_scope,
        )

    def verdict(self, trace: Trace, *, is_supervised: bool, limit_s: float | None = None) -> Verdict:
        """How the application is. `limit_s` bounds the monitor script, beside its own limit."""
        watch = self.watch
        processes, fact, found = watch.look(trace)
        if found is not trace and trace.is_started:
            self.remember(found)
        was_here = self.was_here(trace)
        verdict = judge(
            processes,
            fact,
            (lambda: self.ask_monitor_script(limit_s)) if self.monitor_script else None,
            lambda: what_is_left(watch.finder(trace)),
            was_started=was_here,
            is_supervised=is_supervised,
        )
        if health.is_good(verdict.exit) and not (was_here or watch.can_tell):
            self.remember_meeting()
        return verdict

    def was_here(self, trace: Trace) -> bool:
        """Did we start the application, or find it running when only its scripts can tell of it?"""
        return trace.is_started or (not self.watch.can_tell and bool(self.record("met").read()))

    def remember_meeting(self) -> None:
        """From now on a stop must not take a hung or failing monitor script for a sign that nothing runs."""
        record = self.record("met")
        try:
            record.write({"pid": str(posix.getpid())})
        except OSError as error:
            self.log.warning(f"{record.path} not written: {error.strerror}")

    def ask_monitor_script(self, limit_s: float | None = None) -> Script:
        """Run the monitor script. One that cannot be run, or hangs, gives no exit code."""
        limits = [self.time_left_s - LAST_WORDS_S, self.monitor_timeout or NEVER, NEVER if limit_s is None else limit_s]
        limit = max(0.0, min(limits))
        self.end_abandoned_script()
        try:
            done = self.run_script(self.monitor_script, "monitor", limit)
        except DeadlineExpired:
            raise
        except AgentError as error:
            return Script(None, f"monitor script: {error.reason}", is_missing=True)
        if done.timed_out:
            return Script(None, f"monitor script hung, no end within {limit:.3g} s{quoted(done)}")
        fact = f"monitor script {ended(done.code)}{quoted(done)}"
        return Script(health.translate(self.monitor_rc_map, done.code), fact)

    # --- running programs ----------------------------------------------------------------------------------------

    def launch(self, invocation: Invocation, *, mark: str = "", log_file: str = "") -> Launch:
        """Raises AgentError (2 or 5) when this node lacks the user, the directory or the program."""
        from agents.supervision.belonging import MARK
        from agents.supervision.launch import Launch, environment_for, find_user, require_directory

        user = find_user(self.user, self.group)
        require_directory(self.workdir)
        path = self.node.find_program(invocation.arguments[0])
        environment = environment_for(user, self.instance, self.env)
        if mark:
            environment[MARK] = mark
        return Launch(
            path,
            invocation,
            user,
            environment,
            directory=self.workdir,
            file_mask=self.umask,
            log_file=log_file,
        )

    def run_script(self, invocation: Invocation, name: str, limit_s: float) -> Completed:
        """Run the stop or monitor script; it is recorded, so that the next action can end it if we are killed."""
        from agents.supervision.launch import run_script

        self.doing = f"waiting for the {name} script"
        record = self.record("script")

        def write_down(pid: int) -> None:
            try:
                record.write({"process": str(Process.of(pid) or "")})
            except OSError as error:
                self.log.debug(f"{record.path} not written: {error}")

        done = run_script(self.launch(invocation), write_down, limit_s)
        record.remove()
        return done

    def end_abandoned_script(self) -> None:
        """Kill the stop or monitor script of an action that was itself killed, with its process group."""
        record = self.record("script")
        process = Process.parse(record.read().get("process", ""))
        if process is None or not process.alive():
            return
        from agents.ocf.signals import SIGKILL
        from agents.supervision.processes import read_table, send

        self.log.warning(f"killed script {process.pid}, which an earlier action left behind")
        for entry in read_table().values():
            if entry.group == process.pid:
                send(entry, SIGKILL)
        record.remove()

    # --- start ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the application and wait until it is well. Raises AgentError when that fails; stop cleans up."""
        from agents.supervision.output import Output

        if self.start_script:
            self.run_start_script()
            self.wait_until_ready(None, None)
            return
        launch = self.launch(self.command, mark=self.new_mark(), log_file=self.logfile)
        output = Output(self.logfile, launch.user)
        self.doing = "executing the command"
        self.wait_until_ready(self.spawn(launch), output)

    def new_mark(self) -> str:
        return f"{self.instance}/{posix.urandom(8).hex()}"

    def spawn(self, launch: Launch, output: int | None = None) -> int:
        """Start what must outlive the agent: recorded before it executes anything. Returns the pid."""
        from agents.supervision.belonging import MARK
        from agents.supervision.launch import spawn

        token = launch.environment[MARK].rpartition("/")[2]

        def write_down(pid: int) -> None:
            start = start_ticks(pid)
            self.remember(Trace(token, None if start is None else (pid, start)), is_vital=True)

        try:
            return spawn(launch, write_down, own_session=True, output=output)
        except AgentError:
            self.forget()  # nothing runs
            raise

    def run_start_script(self) -> None:
        """Its output goes to the log file, else to a file in the state directory, which its daemons may go on using."""
        from agents.supervision.launch import create_for, exit_code_of, has_ended
        from agents.supervision.output import Output

        launch = self.launch(self.start_script, mark=self.new_mark(), log_file=self.logfile)
        path = self.logfile or self.record("output").path
        descriptor = None if self.logfile else create_for(path, launch.user)
        self.doing = "waiting for the start script"
        try:
            output = Output(path, launch.user)
            pid = self.spawn(launch, descriptor)
            limit = max(0.0, self.time_left_s - LAST_WORDS_S)
            is_over = has_ended(pid, limit)
        finally:
            if descriptor is not None:
                posix.close(descriptor)
        code = exit_code_of(pid) if is_over else None
        if code != 0:
            fact = f"still runs after {limit:.3g} s" if code is None else ended(code)
            raise AgentError(ERR_GENERIC, f"start script {fact}{after_colon(output.last_line())}")

    def wait_until_ready(self, child: int | None, output: Output | None) -> None:
        """Until the verdict is good; `child` is the command. Raises AgentError when time is over or it has ended."""
        from agents.supervision.launch import exit_code_of, has_ended

        begun = time.monotonic()
        limit = max(0.0, min(self.ready_wait or NEVER, self.time_left_s - LAST_WORDS_S))
        pause, is_settled, reason = 0.0, bool(self.monitor_script), ""
        while True:
            left = max(0.0, limit - (time.monotonic() - begun))
            self.doing = "waiting for the application to become ready"
            if child is None:
                time.sleep(min(pause, left))
            elif has_ended(child, min(pause, left)):
                code = exit_code_of(child)
                child = None
                if self.pidfile or self.process_name:
                    continue
                hint = "; if it runs in the background, give pidfile or process_name" if code == 0 else ""
                line = after_colon(output.last_line()) if output else ""
                raise AgentError(ERR_GENERIC, f"command {ended(code)} before it was ready{hint}{line}")
            left = limit - (time.monotonic() - begun)
            if left < POLL_S[0] and reason:
                line = after_colon(output.last_line()) if output else ""
                raise AgentError(ERR_GENERIC, f"not ready after {limit:.3g} s: {reason}{line}")
            verdict = self.verdict(self.trace(), is_supervised=True, limit_s=max(left, POLL_S[0]))
            if health.is_good(verdict.exit):
                if is_settled or left < SETTLE_S:
                    return
                pause, is_settled = SETTLE_S, True
                continue
            # what a script said whose time was cut short explains less than what it said before
            reason = verdict.reason if left >= POLL_S[1] or not reason else reason
            pause = min(max(pause * 2, POLL_S[0]), POLL_S[1])

    # --- stop ----------------------------------------------------------------------------------------------------

    def end(self, trace: Trace, *, limit_s: float) -> None:
        """Stop script, signal, SIGKILL, and a last look. Raises AgentError (1) when something is left."""
        from agents.supervision.escalation import plan, signal_limit
        from agents.supervision.processes import end_all, listed

        until = time.monotonic() + limit_s
        find = self.watch.finder(trace)
        found = find()
        if not found and not self.may_run_unseen(trace, limit_s / 8):
            self.forget()
            return
        # children of those that end next will be nobody's children: remember them while they can be told
        trace = trace.with_members(entry.identity for entry in found)
        self.remember(trace)
        left_s = until - time.monotonic()
        limits = plan(min(self.timeout_s, limit_s / DEADLINE_SHARE), left_s, self.stop_wait, self.kill_wait)
        trouble = self.run_stop_script(limits.script_s)
        self.doing = "waiting for the application's processes to end"
        survivors = end_all(
            self.watch.finder(trace),
            self.stop_signal,
            signal_s=lambda: signal_limit(limits, until - time.monotonic()),
            kill_s=lambda: min(limits.kill_s, max(0.0, until - time.monotonic())),
        )
        if survivors:
            fact = f"SIGKILL does not end process {listed(survivors)}"
            raise AgentError(ERR_GENERIC, f"{fact}; free what it waits for, or restart this node")
        if self.monitor_script and not self.watch.can_tell:
            doubt = health.doubt(trouble, self.ask_monitor_script(), had_processes=bool(found))
            if doubt:
                raise AgentError(ERR_GENERIC, doubt)
        if trouble and self.stop_script:
            self.log.warning(f"{trouble.fact}; the application has ended nevertheless")
        self.forget()

    def may_run_unseen(self, trace: Trace, limit_s: float) -> bool:
        """No process is known. Could it run all the same, because only the scripts can tell?"""
        if self.watch.can_tell or not self.monitor_script:
            return False
        was_here = self.was_here(trace)
        verdict = self.verdict(trace, is_supervised=False, limit_s=limit_s)
        return health.is_good(verdict.exit) or (verdict.exit != NOT_RUNNING and was_here)

    def run_stop_script(self, limit_s: float) -> Script | None:
        """What went wrong with it, None if nothing. The signals follow in any case."""
        if not self.stop_script:
            return Script(None, "no stop_script is configured", is_missing=True)
        try:
            done = self.run_script(self.stop_script, "stop", limit_s)
        except DeadlineExpired:
            raise
        except AgentError as error:
            return Script(None, f"stop script not run: {error.reason}", is_missing=True)
        if done.timed_out:
            return Script(None, f"stop script hung, no end within {limit_s:.3g} s{quoted(done)}")
        return Script(ERR_GENERIC, f"stop script {ended(done.code)}{quoted(done)}") if done.code != 0 else None

    # --- the record ----------------------------------------------------------------------------------------------

    def trace(self) -> Trace:
        return Trace.of_pairs(self.record("life").read())

    def remember(self, trace: Trace, *, is_vital: bool = False) -> None:
        """Raises AgentError when a vital record cannot be written, as that of a process that is about to start."""
        record = self.record("life")
        try:
            record.write(trace.pairs())
        except OSError as error:
            fact = f"{record.path} cannot be written ({error.strerror})"
            if is_vital:
                raise AgentError(ERR_GENERIC, f"{fact}; make room or make it writable") from None
            self.log.warning(fact)

    def forget(self) -> None:
        for purpose in ("life", "met", "output", "script"):
            self.record(purpose).remove()


def what_is_left(find: Callable[[], list[Entry]]) -> str:
    from agents.supervision.processes import listed

    return listed(find())


def ended(code: int) -> str:
    return f"ended with {code}" if code >= 0 else f"was ended by signal {-code}"


def quoted(done: Completed) -> str:
    return after_colon(done.last_line)


def after_colon(text: str) -> str:
    return f": {text}" if text else ""
