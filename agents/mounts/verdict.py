"""How a mount is: what a monitor answers, and what a stop must unmount. Pure: the mount table in, a verdict out."""

from __future__ import annotations

from agents.mounts.mountinfo import Mount, stack_at, with_descendants
from agents.mounts.source import OTHER, SAME, Wanted
from agents.ocf.exit_code import ERR_GENERIC, NOT_RUNNING, SUCCESS, OcfExit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Verdict:
    """`exit` for the manager, `reason` for the operator, `mount` when it is ours and visible."""

    def __init__(self, exit: OcfExit, reason: str = "", mount: Mount | None = None) -> None:
        self.exit = exit
        self.reason = reason
        self.mount = mount


class View:
    """The mount table, seen from one resource.

    directory    without symbolic links
    names        under which names a mounted device may be configured
    """

    def __init__(
        self, mounts: Sequence[Mount], directory: str, wanted: Wanted, names: Callable[[Mount], frozenset[str]]
    ) -> None:
        self.mounts = mounts
        self.directory = directory
        self.wanted = wanted
        self.stack = stack_at(mounts, directory)
        self.comparisons = {mount.identifier: wanted.compare(names(mount)) for mount in self.stack}

    @property
    def ours(self) -> list[Mount]:
        """What is mounted at the directory and surely is the configured device."""
        return [mount for mount in self.stack if self.comparisons[mount.identifier] == SAME]

    @property
    def maybe_ours(self) -> list[Mount]:
        """As `ours`, and what nobody can tell, since the configured device does not exist now."""
        return [mount for mount in self.stack if self.comparisons[mount.identifier] != OTHER]

    def elsewhere(self, numbers: frozenset[str]) -> list[Mount]:
        """Mounts of these block devices anywhere but at the directory; none if the root file system is on one."""
        if any(mount.number in numbers for mount in stack_at(self.mounts, "/")):
            return []
        return [mount for mount in self.mounts if mount.number in numbers and mount.point != self.directory]

    def judge(self, *, wants_read_only: bool, was_started: bool, is_probe: bool) -> Verdict:
        """The state of the mount.

        wants_read_only   the configured options say ro
        was_started       a start of this boot was not followed by a complete stop
        is_probe          nothing is expected to be here, so what is foreign is no failure of ours
        """
        if not self.maybe_ours:
            return self.judge_absence(was_started=was_started, is_probe=is_probe)
        if not self.ours:
            fact = f"device {self.wanted.device} does not exist now, and {self.stack[-1].source} is mounted at"
            return Verdict(ERR_GENERIC, f"{fact} {self.directory}; bring the device back")
        mount = self.ours[-1]
        if mount is not self.stack[-1]:
            return Verdict(
                ERR_GENERIC, f"{self.stack[-1].source} is mounted over {self.directory} and hides the device"
            )
        if mount.death:
            fact = f"{self.directory} is dead ({mount.death}): file system {mount.source} gave up on its device"
            return Verdict(ERR_GENERIC, fact, mount)
        if mount.is_read_only and not wants_read_only:
            fact = f"{self.directory} is read-only (ro) and should not be: {mount.source} failed or was remounted"
            return Verdict(ERR_GENERIC, fact, mount)
        return Verdict(SUCCESS, "", mount)

    def judge_absence(self, *, was_started: bool, is_probe: bool) -> Verdict:
        """The configured device is not mounted where it should be."""
        number = self.wanted.number
        strayed = [mount for mount in self.mounts if number and mount.number == number]
        if strayed:
            fact = f"device {self.wanted.device} is mounted at {strayed[0].point} and not at {self.directory}"
            # mounts left by a stop that was killed are ours; what an administrator mounted by hand is not
            return Verdict(NOT_RUNNING if is_probe and not was_started else ERR_GENERIC, f"{fact}; unmount it there")
        if not self.stack:
            return Verdict(NOT_RUNNING, f"nothing is mounted at {self.directory}")
        fact = f"{self.stack[-1].source} is mounted at {self.directory}, not {self.wanted.device}"
        return Verdict(NOT_RUNNING if is_probe else ERR_GENERIC, fact)

    def numbers(self, started: str) -> frozenset[str]:
        """Block devices whose mounts all belong to the resource. `started`: what a start of this boot recorded."""
        wanted = self.wanted
        found = {mount.number for mount in self.maybe_ours if mount.is_on_block_device}
        if wanted.accepts_anything:  # what else is mounted of such a device may be anybody's
            found &= {wanted.number}
        if started and (started == wanted.number or wanted.is_unresolved):
            found.add(started)
        return frozenset(found)

    def to_unmount(self, numbers: frozenset[str]) -> list[Mount]:
        """What a stop unmounts, in this order: deepest first, bind mounts elsewhere before the directory itself.

        numbers   block devices all of whose mounts are meant (see `numbers`)
        So a stop that is killed halfway leaves the resource mounted, and is seen to have been killed.
        """
        wanted = [*self.maybe_ours, *self.elsewhere(numbers)]
        return with_descendants(self.mounts, wanted)
