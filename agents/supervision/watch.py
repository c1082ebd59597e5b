"""Looks after the processes of one application: are they all there, and which are they?

A monitor asks for processes it knows already (three small files in /proc); the list of all processes is read only when
that fails, in a probe, and around start and stop.
"""

from __future__ import annotations

import posix

from agents.ocf.process import start_ticks
from agents.supervision.health import COMPLETE, INCOMPLETE, NOBODY, NOT_ASKED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from agents.supervision.belonging import Claim, Entry, Identity
    from agents.supervision.trace import Trace


class Watch:
    """How the processes of one application are recognised.

    is_supervised   its first process must live, unless a pid file or a name says which process counts
    owner           user of the processes that pid file and name may mean
    scope           how far membership reaches: belonging.PROCESS, GROUP or SESSION
    """

    def __init__(
        self,
        instance: str,
        *,
        is_supervised: bool,
        pidfile: str,
        process_name: str,
        process_min: int,
        owner: str,
        scope: str,
    ) -> None:
        self.instance = instance
        self.is_supervised = is_supervised
        self.pidfile = pidfile
        self.process_name = process_name
        self.process_min = process_min
        self.owner = owner
        self.scope = scope

    @property
    def can_tell(self) -> bool:
        """Do processes say whether the application runs? If not, only the monitor script does."""
        return bool(self.is_supervised or self.pidfile or self.process_name)

    def look(self, trace: Trace) -> tuple[str, str, Trace]:
        """What the processes say (see `health`), the fact behind it, and the trace with what was found now."""
        if not self.can_tell:
            return NOT_ASKED, "", trace
        if self.pidfile or self.process_name:
            return (COMPLETE, "", trace) if self.knows_enough(trace) else self.search(trace)
        if trace.leader is None:
            return NOBODY, "not started", trace
        if is_alive(trace.leader):
            return COMPLETE, "", trace
        return NOBODY, f"process {trace.leader[0]} of the command has ended", trace

    def knows_enough(self, trace: Trace) -> bool:
        """Are the processes that were good last time still enough?"""
        if self.pidfile:
            from agents.supervision.processes import pid_in_file

            known = trace.pidfile
            if known is None or pid_in_file(self.pidfile) != known[0] or not is_alive(known):
                return False
        return not self.process_name or sum(is_alive(one) for one in trace.named) >= self.process_min

    def search(self, trace: Trace) -> tuple[str, str, Trace]:
        from agents.supervision.belonging import named
        from agents.supervision.processes import read_table

        table = read_table()
        claim = self.claim(trace)
        holder = self.pidfile_holder(table, claim)
        bearers = named(table, claim, posix.getpid())
        missing = []
        if self.pidfile and holder is None:
            missing.append(f"pid file {self.pidfile} names no process of the application")
        if self.process_name and len(bearers) < self.process_min:
            wanted = f"{self.process_min} processes called {self.process_name} of user {self.owner}"
            missing.append(f"{len(bearers)} of {wanted} found")
        if missing:
            return (INCOMPLETE if holder or bearers else NOBODY), "; ".join(missing), trace
        found = [entry.identity for entry in bearers]
        return COMPLETE, "", trace.with_found(holder.identity if holder else None, found)

    def finder(self, trace: Trace) -> Callable[[], list[Entry]]:
        """A function that finds all processes of the application, as far as the scope reaches."""
        from agents.supervision.belonging import members
        from agents.supervision.processes import read_table

        claim = self.claim(trace)

        def find() -> list[Entry]:
            table = read_table()
            holder = self.pidfile_holder(table, claim)
            return members(table, claim, posix.getpid(), self.scope, holder.pid if holder else None)

        return find

    def claim(self, trace: Trace) -> Claim:
        from agents.supervision.belonging import Claim
        from agents.supervision.launch import user_id_of

        return Claim(
            self.instance,
            token=trace.token,
            leader=trace.leader,
            recorded=trace.seen,
            process_name=self.process_name,
            user=user_id_of(self.owner),
        )

    def pidfile_holder(self, table: dict[int, Entry], claim: Claim) -> Entry | None:
        """The process that the pid file means, if it still means one."""
        from agents.supervision.belonging import is_of_pidfile, untouchable
        from agents.supervision.processes import is_older_than_file, pid_in_file

        pid = pid_in_file(self.pidfile) if self.pidfile else None
        entry = table.get(pid) if pid else None
        if entry is None or entry.pid in untouchable(table, posix.getpid()):
            return None
        older = is_older_than_file(entry, self.pidfile)
        return entry if is_of_pidfile(entry, claim, older_than_file=older) else None


def is_alive(identity: Identity) -> bool:
    return start_ticks(identity[0]) == identity[1]
