"""Which processes belong to an application. Pure: a table of processes in, a set of pids out.

Four proofs count, since none alone survives everything a program may do:
- identity: pid and start time were recorded when it was started (or when an earlier stop looked);
- mark: it carries the environment variable that start gave to the first process, as do all children that keep theirs;
- session: it lives in a session (or process group) whose leader belongs;
- descent: its parent belongs.
A match by name or by the application's own pid file is a claim of the configuration. It reaches no further than the PID
namespace of the agent, the configured user, and processes that no other application has marked.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    Identity = tuple[int, int]
    """pid and start time in clock ticks since boot (field 22 of /proc/<pid>/stat)"""

MARK = "MIRRORHA_APPLICATION"
# how far a signal reaches
PROCESS, GROUP, SESSION = "process", "group", "session"
COMMAND_NAME_LIMIT = 15  # the kernel keeps 15 bytes of a command name


class Entry:
    """One living process, as /proc describes it.

    user, real_user   effective and real user id
    mark              value of the environment variable MIRRORHA_APPLICATION: <instance>/<token>, "" without
    is_here           is it in the agent's own PID namespace, and not in a container inside it?
    """

    def __init__(
        self,
        pid: int,
        parent: int,
        group: int,
        session: int,
        start_ticks: int,
        name: str = "",
        *,
        state: str = "S",
        arguments: tuple[str, ...] = (),
        user: int = 0,
        real_user: int = 0,
        mark: str = "",
        is_here: bool = True,
    ) -> None:
        self.pid = pid
        self.parent = parent
        self.group = group
        self.session = session
        self.start_ticks = start_ticks
        self.name = name
        self.state = state
        self.arguments = arguments
        self.user = user
        self.real_user = real_user
        self.mark = mark
        self.is_here = is_here

    @property
    def identity(self) -> Identity:
        return self.pid, self.start_ticks


class Claim:
    """How one application is recognised.

    token          given out by its last start, "" when none is known
    leader         the process that start made, leader of a session of its own
    recorded       others seen to belong
    process_name   command name or base name of argv[0]; "" = not asked for
    user           owner of processes matched by name or pid file; None when this node does not know the user
    """

    def __init__(
        self,
        instance: str,
        *,
        token: str = "",
        leader: Identity | None = None,
        recorded: frozenset[Identity] = frozenset(),
        process_name: str = "",
        user: int | None = None,
    ) -> None:
        self.instance = instance
        self.token = token
        self.leader = leader
        self.recorded = recorded
        self.process_name = process_name
        self.user = user

    def is_marked(self, entry: Entry) -> bool:
        """A lost token is made good by the owner: nobody but root and the application's user can fake that."""
        instance, _, token = entry.mark.rpartition("/")
        if instance != self.instance:
            return False
        return token == self.token or (entry.is_here and entry.real_user in (0, self.user))

    def is_recorded(self, entry: Entry) -> bool:
        return entry.identity == self.leader or entry.identity in self.recorded

    def may_be_named(self, entry: Entry) -> bool:
        """May configuration alone (a name, a pid file) point at this process?"""
        other = entry.mark.rpartition("/")[0]
        return entry.is_here and entry.user == self.user and other in ("", self.instance)

    def is_named(self, entry: Entry) -> bool:
        return has_name(entry, self.process_name) and self.may_be_named(entry)


def has_name(entry: Entry, name: str) -> bool:
    """Is this its command name, or the base name of argv[0]? The words of other arguments never count.

    A name too long for the kernel must also be the base name of the program, or of the script an interpreter runs.
    """
    if not name:
        return False
    first, second = (*(word.rpartition("/")[2] for word in entry.arguments[:2]), "", "")[:2]
    if first == name:
        return True
    kept = name.encode("utf-8", "surrogateescape")[:COMMAND_NAME_LIMIT].decode("utf-8", "surrogateescape")
    return entry.name == kept and (kept == name or second == name)


def untouchable(table: Mapping[int, Entry], agent: int) -> frozenset[int]:
    """The agent, whoever called it, and init: never signalled, whatever else is true of them."""
    found = {1, agent}
    pid = agent
    while pid in table and table[pid].parent not in found:
        pid = table[pid].parent
        found.add(pid)
    return frozenset(found)


def named(table: Mapping[int, Entry], claim: Claim, agent: int) -> list[Entry]:
    """Who answers to the configured process name."""
    spared = untouchable(table, agent)
    return [entry for entry in table.values() if entry.pid not in spared and claim.is_named(entry)]


def is_of_pidfile(entry: Entry, claim: Claim, *, older_than_file: bool) -> bool:
    """Does a pid file of the application that holds this pid still mean this process, and not a later one?

    Without proof it must have the right owner and be older than the file, since it wrote it.
    """
    if claim.is_recorded(entry) or claim.is_marked(entry) or claim.is_named(entry):
        return True
    return claim.may_be_named(entry) and older_than_file and not claim.process_name


def members(
    table: Mapping[int, Entry], claim: Claim, agent: int, scope: str, pidfile_pid: int | None = None
) -> list[Entry]:
    """Everything of the application, as far as `scope` reaches, by pid. `pidfile_pid` was checked by is_of_pidfile."""
    spared = untouchable(table, agent)
    candidates = [entry for entry in table.values() if entry.pid not in spared]
    found = {e.pid for e in candidates if claim.is_recorded(e) or claim.is_named(e) or e.pid == pidfile_pid}
    if scope != PROCESS:
        proven = found | {entry.pid for entry in candidates if claim.is_marked(entry)}
        if scope == SESSION:
            found = proven
            while more := related(candidates, claim, found):
                found |= more
        else:
            leaders = led_groups(candidates, claim, found, proven)
            found |= {entry.pid for entry in candidates if entry.group in leaders}
    return [table[pid] for pid in sorted(found)]


def related(candidates: list[Entry], claim: Claim, found: set[int]) -> set[int]:
    """Children of those found, and members of the sessions they lead."""
    sessions = {entry.session for entry in candidates if entry.pid in found and entry.session == entry.pid}
    # the number of a session without leader belongs to it while a member lives, so one proven member proves it
    if claim.leader and any(e.session == claim.leader[0] and e.pid in found for e in candidates):
        sessions.add(claim.leader[0])
    return {e.pid for e in candidates if (e.session in sessions or e.parent in found) and e.pid not in found}


def led_groups(candidates: list[Entry], claim: Claim, found: set[int], proven: set[int]) -> set[int]:
    groups = {entry.group for entry in candidates if entry.pid in found and entry.group == entry.pid}
    if claim.leader and any(e.group == claim.leader[0] and e.pid in proven for e in candidates):
        groups.add(claim.leader[0])
    return groups
