"""Frees a file system: unmounts all of it, ends who holds it, looks whether the device is free.

Each round looks at the mount table anew, so it does not matter what a stop that was killed had done already.
"""

from __future__ import annotations

import posix
import time

from agents.mounts import access, search
from agents.mounts.errand import program
from agents.mounts.holders import Target
from agents.mounts.schedule import ASK, GIVE_UP, Schedule
from agents.mounts.source import device_of, is_remote
from agents.ocf.exit_code import ERR_GENERIC, AgentError
from agents.ocf.signals import SIGCONT, SIGKILL, SIGTERM
from agents.supervision.processes import listed, send, wait_for_ends

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agents.filesystem import Filesystem
    from agents.mounts.mountinfo import Mount
    from agents.mounts.search import Findings
    from agents.supervision.belonging import Entry, Identity

# A mount may stay busy for a moment after its last user has ended.
BUSY_GRACE_S = 1.0
POLL_S = 0.1


class Release:
    """One stop of one resource. `agent` gives parameters, mount table, errands and the clock."""

    def __init__(self, agent: Filesystem) -> None:
        self.agent = agent

    def all_of_it(self, limit_s: float) -> None:
        """Raises AgentError (1) when something is left after `limit_s` seconds, or when waiting is of no use."""
        agent = self.agent
        begin = time.monotonic()
        schedule = Schedule(limit_s, is_fast=agent.fast_stop)
        asked: set[Identity] = set()
        numbers: frozenset[str] = frozenset()
        while True:
            view = agent.view()
            numbers |= view.numbers(agent.started_number)
            targets = view.to_unmount(numbers)
            trouble = self.unmount_all(targets) if targets else self.still_claimed(numbers)
            if not trouble and not targets:
                return
            if not trouble:
                continue
            findings = self.search(targets, numbers)
            passed_s = time.monotonic() - begin
            if agent.force_unmount != "false" and findings.holders:
                self.signal(findings.holders, schedule.stage(passed_s), asked)
                agent.doing = f"waiting for processes that hold {agent.directory}"
                wait_for_ends(findings.holders, schedule.pause_s(passed_s))
            else:
                self.demand_hope(trouble, findings, is_early=passed_s < BUSY_GRACE_S)
                time.sleep(POLL_S)

    def demand_hope(self, trouble: str, findings: Findings, *, is_early: bool) -> None:
        """Raises AgentError (1) when nothing that the agent may do will free the file system."""
        held = f"{self.agent.directory} is held by"
        if findings.holders:
            raise AgentError(ERR_GENERIC, f"{held} process {listed(findings.holders)}; end it, or allow force_unmount")
        if findings.spared:
            raise AgentError(ERR_GENERIC, f"{held} process {listed(findings.spared)}, which no stop may end")
        if findings.kernel:
            raise AgentError(ERR_GENERIC, f"{held} {'; '.join(findings.kernel)}; end that use first")
        if findings.namespaces:
            fact = f"still mounted in the mount namespace of process {', '.join(findings.namespaces)}"
            raise AgentError(ERR_GENERIC, f"{self.agent.directory} is {fact}; unmount it there")
        if not is_early:
            raise AgentError(ERR_GENERIC, f"{trouble}; nobody is found who holds it")

    def signal(self, holders: list[Entry], stage: str, asked: set[Identity]) -> None:
        """SIGTERM once to each, or SIGKILL. Raises AgentError (1) when the time is over."""
        directory = self.agent.directory
        if stage == GIVE_UP:
            fact = f"{directory} is held by process {listed(holders)}, which SIGKILL does not end"
            raise AgentError(ERR_GENERIC, f"{fact}; free what it waits for, or restart this node")
        new = [entry for entry in holders if stage != ASK or entry.identity not in asked]
        if new:
            name = "SIGTERM" if stage == ASK else "SIGKILL"
            who = ", ".join(f"{entry.pid} ({entry.name})" for entry in new)
            self.agent.log.warning(f"{name} to process {who}, since it holds {directory}")
        for entry in new:
            asked.add(entry.identity)
            send(entry, SIGTERM if stage == ASK else SIGKILL)
            send(entry, SIGCONT)  # one that was stopped could not even hear the request

    def unmount_all(self, mounts: list[Mount]) -> str:
        """In this order, until one cannot be unmounted: why not; "" when all are.

        Raises AgentError (1) when one hangs.
        """
        umount = self.agent.node.find_program("umount") if mounts else ""
        for mount in mounts:
            # -c: umount itself would look at the path. -f: a server that does not answer would keep us for ever
            words = ["-c", "-f"] if is_remote(mount.kind) and not mount.kind.startswith("fuse") else ["-c"]
            outcome = self.agent.errand("change", f"umount of {mount.point}", program(umount, *words, mount.point))
            if outcome.code is None:
                stuck = f" (process {outcome.stuck_pid})" if outcome.stuck_pid else ""
                fact = f"umount of {mount.point} hung{stuck}: {mount.source} does not answer"
                raise AgentError(ERR_GENERIC, fact)
            if not outcome.is_good:
                return outcome.first_line.removeprefix("umount: ").rstrip(".")  # "/srv/x: target is busy"
        return ""

    def still_claimed(self, numbers: frozenset[str]) -> str:
        """Unmounted here, a file system lives on while it is mounted in another namespace; "" when it does not."""
        for number in sorted(numbers):
            path = device_of(number)
            trouble = self.claim(path) if path else ""
            if trouble:
                return trouble
        return ""

    def claim(self, path: str) -> str:
        """Who unmounts the last of a file system lets the device go; "" when nobody uses it any more."""
        outcome = self.agent.errand("claim", f"open of {path}", lambda: access.claim_device(path))
        if outcome.is_good:
            return ""
        fact = "does not answer" if outcome.code is None else "is still in use"
        return f"{self.agent.directory} is unmounted, but device {path} {fact}"

    def search(self, targets: list[Mount], numbers: frozenset[str]) -> Findings:
        """Who holds these mounts, or mounts of these devices in other namespaces."""
        agent = self.agent
        target, own_pid = Target(targets, numbers), posix.getpid()
        # reading a memory map can hang, and one that hangs since an earlier stop must not fail this one
        with_maps = not agent.pending("search")
        purpose = "search" if with_maps else "places"

        def work() -> None:
            search.search(target, own_pid, with_maps=with_maps)

        outcome = agent.errand(purpose, "the search for processes", work)
        if not outcome.is_good:
            fact = "did not end" if outcome.code is None else f"failed ({outcome.last_line})"
            agent.log.warning(f"the search for processes {fact}; going on with those found")
        return search.read_findings(outcome.output)
