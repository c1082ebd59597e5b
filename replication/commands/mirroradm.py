"""mirroradm: verbs, options and exit codes of drbdadm, for the mirror.

A verb that changes something is planned first, and --dry-run prints the plan. Everything else is in queries.py.
"""

from __future__ import annotations

import argparse
import enum
import json
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from replication import config
from replication.commands import completion, queries, targets
from replication.commands.queries import complain
from replication.commands.steps import Ask, CreateMetadata, Start, Step, Stop, StopByForce
from replication.control import RUNTIME_DIRECTORY, STATE_DIRECTORY, Exit, Verb, running
from replication.create_metadata import Existing
from replication.errors import MirrorError, Unavailable

PROGRAM = "mirroradm"
LOG_DIRECTORY = Path("/var/log/mirrorha")
DAY_S = 86400.0

Arguments = argparse.Namespace
Plan = Callable[[Arguments, str], list[Step]]
AddOptions = Callable[[argparse.ArgumentParser], None]


class Parser(argparse.ArgumentParser):
    """Wrong usage ends with drbdadm's exit code."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(Exit.USAGE, f"{self.prog}: {message}; see {self.prog} -h\n")


@dataclass(frozen=True, slots=True)
class Query:
    """A verb that changes nothing."""

    help: str
    run: Callable[[Arguments], int]
    example: str
    timeout_s: float = 5.0
    add_options: AddOptions = lambda parser: None
    resources: str | int = "+"
    """argparse's nargs; 0: none are named."""


class All(enum.Enum):
    """Which resources `all` stands for."""

    DEFINED = enum.auto()
    RUNNING = enum.auto()


@dataclass(frozen=True, slots=True)
class Change:
    """A verb that changes something."""

    help: str
    plan: Plan
    example: str
    timeout_s: float = 20.0
    add_options: AddOptions = lambda parser: None
    of_all: All = All.DEFINED


# plans ---------------------------------------------------------------------------------------------------------------


def ask(verb: Verb, *flags: str) -> Plan:
    """A plan of one question, whose arguments are the options of these names."""

    def plan(arguments: Arguments, name: str) -> list[Step]:
        given = {flag: getattr(arguments, flag) for flag in flags}
        return [Ask(name, arguments.runtime_directory, verb, given)]

    return plan


def plan_up(arguments: Arguments, name: str) -> list[Step]:
    resource = targets.look_up(name, arguments.config)
    resource.local(targets.here())
    for warning in resource.warnings:
        print(f"{PROGRAM}: warning: {warning}", file=sys.stderr)
    program = shlex.split(arguments.mirrord) if arguments.mirrord else [sys.executable, "-m", "replication.daemon"]
    command = [*program, name]
    if arguments.config != config.DIRECTORY:
        command += ["-c", str(arguments.config)]
    if arguments.runtime_directory != RUNTIME_DIRECTORY:
        command += ["--runtime-directory", str(arguments.runtime_directory)]
    if arguments.state_directory != STATE_DIRECTORY:
        command += ["--state-directory", str(arguments.state_directory)]
    log = arguments.log_directory / f"mirror-{name}.log"
    return [Start(name, arguments.runtime_directory, tuple(command), log)]


def plan_down(arguments: Arguments, name: str) -> list[Step]:
    return [(StopByForce if arguments.force else Stop)(name, arguments.runtime_directory)]


def plan_primary(arguments: Arguments, name: str) -> list[Step]:
    promote = Ask(name, arguments.runtime_directory, Verb.PRIMARY, {"force": arguments.force})
    return [*(plan_permit(arguments, name) if arguments.accept_loss else []), promote]


def plan_permit(arguments: Arguments, name: str) -> list[Step]:
    return [Ask(name, arguments.runtime_directory, Verb.PERMIT, {"accept_loss": arguments.accept_loss})]


def plan_create_md(arguments: Arguments, name: str) -> list[Step]:
    resource = targets.look_up(name, arguments.config)
    existing = Existing.OVERWRITE if arguments.force else Existing.REFUSE
    return [CreateMetadata(resource, arguments.runtime_directory, existing, resource.local(targets.here()).disk)]


# options -------------------------------------------------------------------------------------------------------------


def flag(*names: str, help: str) -> AddOptions:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(*names, action="store_true", help=help)

    return add


def primary_options(parser: argparse.ArgumentParser) -> None:
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--force",
        action="store_true",
        help="declare this disk the truth, whatever its state: the first synchronisation starts here",
    )
    choice.add_argument(
        "--accept-loss", metavar="HOST", help="permit the take-over as `permit` does, then promote; HOST may lack data"
    )


def permit_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--accept-loss",
        metavar="HOST",
        required=True,
        help="the host that may be promoted though it may lack what the other one has",
    )


def new_current_uuid_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clear-bitmap",
        action="store_true",
        required=True,
        help="both disks are declared equal, as after filling both with zeroes: no first synchronisation",
    )


def status_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        dest="output",
        action="store_const",
        const="json",
        default=argparse.SUPPRESS,
        help="the same as -o json",
    )
    parser.add_argument("--verbose", action="store_true", help="also what goes without saying")
    parser.add_argument("--statistics", action="store_true", help="also the counters, in KiB")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="auto: on a terminal")


def events2_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--now", action="store_true", help="print what exists, and end")
    parser.add_argument("--timestamps", action="store_true", help="begin each line with the time")
    parser.add_argument("--statistics", action="store_true", help="also the counters, in KiB")


def completion_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash",))


def print_completion(arguments: Arguments) -> int:
    parser, verbs = make_parser()
    print(completion.bash(parser, verbs), end="")
    return 0


VERBS: dict[str, Query | Change] = {
    "create-md": Change(
        "write new metadata at the end of this host's disk",
        plan_create_md,
        "create-md r0",
        300.0,
        flag("--force", help="overwrite metadata of a mirror: this disk forgets which data it has"),
    ),
    "up": Change("start the mirror", plan_up, "up all", 60.0),
    "down": Change(
        "stop the mirror",
        plan_down,
        "down --force r0",
        60.0,
        flag("--force", help="whatever happens: a daemon that has not ended at half the time-out is killed"),
        All.RUNNING,
    ),
    "primary": Change("make this side the active one", plan_primary, "primary r0", 30.0, primary_options),
    "secondary": Change(
        "make this side the standby",
        ask(Verb.SECONDARY, "force"),
        "secondary r0",
        60.0,
        flag("--force", help="even while the device is held open; its users get errors"),
    ),
    "permit": Change(
        "let a host be promoted that may lack data, until the data change",
        plan_permit,
        "permit r0 --accept-loss=beta",
        add_options=permit_options,
    ),
    "connect": Change(
        "look for the peer",
        ask(Verb.CONNECT, "discard_my_data"),
        "connect --discard-my-data r0",
        add_options=flag("--discard-my-data", help="after split brain: this side's changes are given up"),
    ),
    "disconnect": Change("leave the peer, and stay alone until connect", ask(Verb.DISCONNECT), "disconnect r0"),
    "invalidate": Change("have this side overwritten by the peer's", ask(Verb.INVALIDATE), "invalidate r0"),
    "invalidate-remote": Change("overwrite the peer's side", ask(Verb.INVALIDATE_REMOTE), "invalidate-remote r0"),
    "outdate": Change("mark this side's data as old", ask(Verb.OUTDATE), "outdate r0"),
    "new-current-uuid": Change(
        "begin a new generation of both disks",
        ask(Verb.NEW_CURRENT_UUID, "clear_bitmap"),
        "new-current-uuid --clear-bitmap r0",
        add_options=new_current_uuid_options,
    ),
    "attach": Change("take the disk into use", ask(Verb.ATTACH), "attach r0"),
    "detach": Change("give up the disk", ask(Verb.DETACH), "detach r0"),
    "status": Query(
        "how it is, why, and what to type", queries.status, "status --json", add_options=status_options, resources="*"
    ),
    "events2": Query(
        "what exists, and then what happens, a line each",
        queries.events2,
        "events2 --timestamps r0",
        0.0,
        events2_options,
        "*",
    ),
    "role": Query("Primary or Secondary", queries.role, "role r0"),
    "cstate": Query("state of the connection", queries.cstate, "cstate r0"),
    "dstate": Query("state of this disk/the peer's", queries.dstate, "dstate r0"),
    "wait-sync": Query("wait until the sides are equal", queries.wait_sync, "wait-sync --timeout 3600 r0", DAY_S),
    "wait-connect": Query("wait until the peer is there", queries.wait_connect, "wait-connect -t 60 r0", DAY_S),
    "dump": Query("print the configuration as understood; holds the shared secret", queries.dump, "dump all"),
    "dump-md": Query("print the metadata of this host's disk", queries.dump_md, "dump-md r0"),
    "sh-resources": Query("names of the resources defined", queries.sh_resources, "sh-resources", resources=0),
    "completion": Query(
        "print a shell's completion script", print_completion, "completion bash", 5.0, completion_options, 0
    ),
}

EPILOG = """\
examples:
  mirroradm create-md r0                        on both hosts, once
  mirroradm up r0                               on both hosts
  mirroradm primary --force r0                  on the host whose data are to be kept
  mirroradm status r0
  mirroradm primary --accept-loss=beta r0       on beta, when alpha does not come back
  mirroradm connect --discard-my-data r0        after split brain, on the host that gives way
  source <(mirroradm completion bash)

exit status: 0 done; 1 wrong usage, resource not defined; 5 not so in time (wait-*); 10 configuration not valid, or
resource not up; 11 refused; 16 disk failed; 17 no UpToDate data in reach; 20 the daemon does not start or answer
"""


def make_parser() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(
        prog=PROGRAM,
        description="Administers mirrors: two disks on two hosts kept equal.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[shared_options()],
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verbs: dict[str, Parser] = {}
    for name, row in VERBS.items():
        limit = f"{row.timeout_s:g} s" if row.timeout_s else "none"
        verb_parser = verbs[name] = subparsers.add_parser(
            name,
            help=row.help,
            description=f"{row.help[0].upper()}{row.help[1:]}.",
            epilog=f"example: {PROGRAM} {row.example}\ntime-out unless told otherwise: {limit}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[shared_options()],
            allow_abbrev=False,
        )
        if isinstance(row, Change):
            verb_parser.add_argument(
                "-d", "--dry-run", action="store_true", help="change nothing, print what would be done"
            )
        row.add_options(verb_parser)
        nargs = row.resources if isinstance(row, Query) else "+"
        if nargs:
            verb_parser.add_argument("resources", nargs=nargs, metavar="RES", help="RES, RES/0 or all")
    return parser, verbs


def shared_options() -> Parser:
    """May stand before the verb or behind it. Defaults: see `main`."""
    shared = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    shared.add_argument(
        "-c", "--config", type=Path, metavar="PATH", help=f"one .res file, or a directory of them ({config.DIRECTORY})"
    )
    shared.add_argument(
        "-t", "--timeout", type=seconds, metavar="SECONDS", help="how long each resource may take; 0 waits without end"
    )
    shared.add_argument("-o", "--output", choices=("text", "json"), help="text unless told otherwise")
    shared.add_argument(
        "--runtime-directory", type=Path, metavar="DIR", help=f"where the sockets are ({RUNTIME_DIRECTORY})"
    )
    shared.add_argument(
        "--state-directory", type=Path, metavar="DIR", help=f"where daemons keep permits ({STATE_DIRECTORY})"
    )
    shared.add_argument("--log-directory", type=Path, metavar="DIR", help=f"where daemons write ({LOG_DIRECTORY})")
    shared.add_argument("--mirrord", metavar="COMMAND", help="the daemon's program, as for running it under strace")
    return shared


def seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds")
    return value


def carry_out(arguments: Arguments, row: Change) -> int:
    """Each resource by itself: what fails for one is done for the others nevertheless."""
    names = targets.names(
        arguments.resources,
        lambda: (
            targets.all_defined(arguments.config) if row.of_all is All.DEFINED else running(arguments.runtime_directory)
        ),
    )
    done: list[dict[str, Any]] = []
    code = 0
    for name in names:
        notes: list[str] = []
        entry: dict[str, Any] = {"name": name, "verb": arguments.verb, "steps": [], "notes": notes}
        try:
            steps = row.plan(arguments, name)
            entry["steps"] = [str(step) for step in steps]
            deadline = time.monotonic() + arguments.timeout
            for step in () if arguments.dry_run else steps:
                step.execute(deadline, notes.append)
        except MirrorError as error:
            error = targets.explained(error, name, arguments.config)
            code = complain(error) or code
            entry["error"] = {"subject": error.subject, "fact": error.fact, "remedy": error.remedy, "code": code}
        for note in notes:
            print(f"{PROGRAM}: {note}", file=sys.stderr)
        if arguments.dry_run and arguments.output == "text":
            print(*entry["steps"], sep="\n")
        done.append(entry)
    if arguments.output == "json":
        print(json.dumps(done, indent=2))
    return code


def run(arguments: Arguments) -> int:
    row = VERBS[arguments.verb]
    if arguments.timeout is None:
        arguments.timeout = row.timeout_s
    elif arguments.timeout == 0 and row.timeout_s not in (0.0, DAY_S):
        arguments.timeout = DAY_S
    try:
        return carry_out(arguments, row) if isinstance(row, Change) else row.run(arguments)
    except MirrorError as error:
        return complain(error)
    except OSError as error:
        return complain(Unavailable(str(error.filename or PROGRAM), error.strerror or str(error)))


def main(argv: Sequence[str] | None = None) -> int:
    """Never returns by an exception that an operator can cause."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    defaults = argparse.Namespace(
        config=config.DIRECTORY,
        timeout=None,
        output="text",
        runtime_directory=RUNTIME_DIRECTORY,
        state_directory=STATE_DIRECTORY,
        log_directory=LOG_DIRECTORY,
        mirrord=None,
        dry_run=False,
    )
    parser, _ = make_parser()
    arguments = parser.parse_args(argv, defaults)
    for directory in ("config", "runtime_directory", "state_directory", "log_directory"):
        setattr(arguments, directory, getattr(arguments, directory).absolute())
    try:
        return run(arguments)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
