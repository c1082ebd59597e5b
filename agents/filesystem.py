"""ocf:mirrorha:Filesystem, in the place of heartbeat:Filesystem.

The file asks and acts; what is decided is in `agents.mounts`: what the mount table says (`verdict`), is it the
configured device (`source`), who holds it (`holders`), how a stop divides its time (`schedule`). Whatever may block is
an errand of a child (`errand`). A monitor of level 0 reads the mount table and imports nothing beyond this file's head.
"""

from __future__ import annotations

import posix
import time

from agents.mounts.mountinfo import Mount, read_mounts, resolve
from agents.mounts.source import (
    HELPERS,
    Wanted,
    device_of,
    is_block,
    is_remote,
    link_for,
    link_target,
    look_up_names,
    number_of,
    tag_of,
)
from agents.mounts.verdict import Verdict, View
from agents.ocf.agent import Agent, action
from agents.ocf.exit_code import ERR_CONFIGURED, ERR_GENERIC, ERR_INSTALLED, NOT_RUNNING, SUCCESS, AgentError, OcfExit
from agents.ocf.parameter import TRUE_WORDS, Boolean, Choice, Seconds, Text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from agents.mounts.errand import Outcome

# An action ends itself this much before the deadline would end it, because it can say what it was waiting for.
LAST_WORDS_S = 0.5
# How long a stop waits for another action on the same resource: a hung start must not make it fail.
STOP_PATIENCE_S = 2.0
# A device may come a moment after what activated it has said so (udev makes links).
DEVICE_PATIENCE_S = 2.0
POLL_S = 0.1
NEVER_A_DIRECTORY_OF_OURS = frozenset(
    ("/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/usr", "/var")
)
NEVER_AN_OPTION_OF_OURS = frozenset(("bind", "rbind", "move", "remount"))


class Directory(Text):
    """Where to mount. The directories of the system itself are refused: a stop ends whoever uses the directory."""

    def convert(self, text: str) -> str:
        words = [word for word in super().convert(text).split("/") if word and word != "."]
        path = "/" + "/".join(words)
        if not text.startswith("/") or ".." in words:
            raise ValueError("must be an absolute path without ..")
        if path in NEVER_A_DIRECTORY_OF_OURS:
            raise ValueError("must be a directory that the system itself can do without")
        return path

    def constraint(self) -> str:
        return "Absolute path."


class Prefix(Text):
    """The beginning of a file's path inside the mounted directory."""

    def convert(self, text: str) -> str:
        path = super().convert(text).lstrip("/")
        if ".." in path.split("/"):
            raise ValueError("must stay inside the mounted directory")
        return path

    def constraint(self) -> str:
        return "Relative path; what follows the last slash begins the name of the file."


class Force(Choice):
    """Also yes and no, on and off: earlier configurations say so."""

    def convert(self, text: str) -> str:
        word = text.lower()
        if word in TRUE_WORDS:
            return "true"
        return "false" if word in ("no", "off", "0") else super().convert(text)


class Filesystem(Agent):
    """Mounts one file system on the node where the resource runs.

    The mount point is never touched to find out how the mount is: the kernel's mount table says so without waiting for
    a disk or server that is gone. What must touch it is done by a child that can be abandoned. A start never leaves a
    file system read-only by accident. A stop unmounts everything inside too, ends the processes that hold the
    file system, and names them.

    Monitors: OCF_CHECK_LEVEL 0 reads the mount table, 10 also reads from the device past all caches, 20 also writes a
    status file and reads it back.
    """

    device = Text(
        "Device to mount",
        "Block device, UUID=, LABEL=, PARTUUID= or PARTLABEL= of one, image file, or server:/path of a network share.",
        required=True,
    )
    directory = Directory(
        "Directory to mount at",
        "Mount point; it is created when it does not exist.",
        required=True,
        unique=True,
        unique_group="directory",
    )
    fstype = Text("Type of the file system", "Type as mount -t takes it: ext4, xfs, nfs, …", required=True)
    options = Text("Mount options", "Options as mount -o takes them; with ro the file system may be read-only.")
    run_fsck = Choice(
        "Check before mounting",
        "auto: check file systems without a journal. force: check all. no: check none. The start fails when errors are "
        "left.",
        options=("auto", "force", "no"),
        default="auto",
    )
    force_unmount = Force(
        "End processes that hold it",
        "What a stop does with processes that hold the file system: true = SIGTERM, then SIGKILL; safe = the same, for "
        "earlier configurations (the search never touches the mount); false = the stop fails and names them.",
        options=("true", "safe", "false"),
        default="true",
        reloadable=True,
    )
    fast_stop = Boolean(
        "Short patience in a stop",
        "Give processes 4 s between SIGTERM and SIGKILL and 2 s more, instead of two thirds of the stop's time and the "
        "rest.",
        default=False,
        reloadable=True,
    )
    statusfile_prefix = Prefix(
        "Status file of level 20",
        "Beginning of the path of the file that a monitor of level 20 writes, inside the directory.",
        default=".Filesystem_status/",
        reloadable=True,
    )
    io_timeout = Seconds(
        "Longest wait for an access",
        "How long a monitor waits for one access to the device or directory before it counts as hung.",
        default="15s",
        minimum="100ms",
        reloadable=True,
    )
    check_source = Boolean(
        "Compare the mounted device",
        "What is mounted at the directory must be the configured device; else whatever is mounted counts as it.",
        default=True,
        reloadable=True,
    )

    def check(self) -> None:
        unfit = sorted(self.option_words & NEVER_AN_OPTION_OF_OURS)
        if unfit:
            fact = f"option {unfit[0]} mounts no file system of its own"
            raise AgentError(ERR_CONFIGURED, f"{fact}; remove it, or use ocf:heartbeat:Filesystem for it")

    def check_node(self) -> None:
        for name in ("mount", "umount"):
            self.node.find_program(name)
        kind = HELPERS.get(self.fstype)
        if kind:
            self.node.find_program(f"mount.{kind}")

    # --- actions -------------------------------------------------------------------------------------------------

    @action(timeout_s=40, interval_s=20)
    @action(timeout_s=40, interval_s=60, depth=10)
    @action(timeout_s=40, interval_s=120, depth=20)
    def monitor(self) -> OcfExit:
        verdict = self.verdict()
        if verdict.exit == SUCCESS and self.check_level >= 10:
            self.prove_alive(verdict)
        if verdict.exit == SUCCESS:
            return SUCCESS
        if verdict.exit == NOT_RUNNING:
            pending = self.pending("change")
            if pending:
                raise AgentError(ERR_GENERIC, f"{pending} has not ended yet")
            if self.is_probe:
                self.log.debug(verdict.reason)
                return NOT_RUNNING
        raise AgentError(verdict.exit, verdict.reason)

    @action(timeout_s=60)
    def start(self) -> OcfExit:
        with self.lock(self.time_left_s - LAST_WORDS_S) as is_alone:
            if not is_alone:
                raise AgentError(ERR_GENERIC, f"another action on {self.instance} is still running; wait for its end")
            self.await_changes()
            verdict = self.verdict()
            if verdict.exit == SUCCESS:
                return SUCCESS
            self.check_node()
            if verdict.mount is not None:
                self.log.warning(f"unmounted before the start: {verdict.reason}")
                self.unmount_again(verdict.reason)
            elif verdict.exit != NOT_RUNNING:
                raise AgentError(verdict.exit, verdict.reason)
            self.mount_anew()
        return SUCCESS

    @action(timeout_s=60)
    def stop(self) -> OcfExit:
        from agents.mounts.release import Release

        with self.lock(min(STOP_PATIENCE_S, self.time_left_s / 4)) as is_alone:
            if not is_alone:
                # stopping is always right, and a hung start of somebody else must not make it fail
                self.log.warning(f"another action on {self.instance} is running; stopping nevertheless")
            self.await_changes()
            Release(self).all_of_it(self.time_left_s - LAST_WORDS_S)
            for purpose in ("life", "change"):
                self.record(purpose).remove()
        return SUCCESS

    @action(timeout_s=10)
    def reload_agent(self) -> OcfExit:
        return SUCCESS  # every action reads the parameters afresh

    def lock(self, patience_s: float) -> AbstractContextManager[bool]:
        from agents.supervision.lock import Lock, Unlocked

        path = self.record("lock").path
        try:
            return Lock(path, patience_s)
        except OSError as error:
            self.log.warning(f"{path} cannot be opened ({error.strerror}); going on without lock")
            return Unlocked()

    # --- what is mounted? ----------------------------------------------------------------------------------------

    @property
    def option_words(self) -> frozenset[str]:
        return frozenset(word.strip() for word in self.options.split(","))

    def verdict(self) -> Verdict:
        was_started = self.is_probe and bool(self.started_number)
        return self.view().judge(
            wants_read_only="ro" in self.option_words, was_started=was_started, is_probe=self.is_probe
        )

    def view(self) -> View:
        """The mount table as it is now."""
        mounts = read_mounts()
        directory = self.directory
        if not any(mount.point == directory for mount in mounts):
            directory = resolve(directory, mounts, link_target, is_remote)
        is_something_there = any(mount.point == directory for mount in mounts)
        return View(mounts, directory, self.wanted(mounts, thoroughly=is_something_there), look_up_names)

    def wanted(self, mounts: list[Mount], *, thoroughly: bool) -> Wanted:
        """The configured device. `thoroughly`: read all disks for a UUID or label that neither udev nor we know."""
        if not is_block(self.device):
            real = resolve(self.device, mounts, link_target, is_remote) if self.device.startswith("/") else ""
            return Wanted(self.device, names=(real,), accepts_anything=not self.check_source)
        number = number_of(self.find_device(thoroughly=thoroughly))
        if not number and tag_of(self.device):
            number = self.started_number
        return Wanted(self.device, number=number, is_unresolved=not number, accepts_anything=not self.check_source)

    def find_device(self, *, thoroughly: bool) -> str:
        """Path of the configured device; "" when a UUID or label is not found. The path need not exist."""
        tag = tag_of(self.device)
        if tag is None:
            return self.device
        link = link_for(*tag)
        if number_of(link):
            return link
        is_known = bool(self.started_number) and self.action_name != "start"
        if not thoroughly or is_known or self.pending("blkid"):
            return ""
        from agents.mounts.errand import program

        blkid = self.node.find_program("blkid")
        words = ("-c", "/dev/null", "-o", "device", "-t", "=".join(tag))
        outcome = self.errand("blkid", f"the search for {self.device}", program(blkid, *words))
        return outcome.first_line if outcome.is_good else ""

    @property
    def started_number(self) -> str:
        """major:minor of the device that a start of this boot mounted and no stop has freed since; "" for none."""
        recorded = self.record("life").read()
        return recorded.get("number", "") if recorded.get("device") == self.device else ""

    # --- errands -------------------------------------------------------------------------------------------------

    def errand(self, purpose: str, what: str, work: Callable[[], None]) -> Outcome:
        """Let a child do what may block; it is on record until it has ended, so that there is never a second one.

        purpose   change: mount, umount or fsck, which may take until our deadline. All others get io_timeout
        Raises AgentError (1) when the last one of the same purpose still hangs, or this one does.
        """
        from agents.mounts.errand import run
        from agents.ocf.process import Process

        pending = self.pending(purpose)
        if pending:
            raise AgentError(ERR_GENERIC, f"{pending} still hangs; the disk or server behind it does not answer")
        self.doing = f"waiting for {what}"
        record = self.record(purpose)
        left_s = self.time_left_s - LAST_WORDS_S
        limit_s = max(0.0, left_s if purpose == "change" else min(left_s, self.io_timeout))

        def write_down(pid: int) -> None:
            try:
                record.write({"process": str(Process.of(pid) or ""), "what": what})
            except OSError as error:
                self.log.warning(f"{record.path} not written: {error.strerror}")

        outcome = run(work, write_down, limit_s)
        if not outcome.stuck_pid:
            record.remove()
        return outcome

    def pending(self, purpose: str) -> str:
        """What an errand of an earlier action does that not even SIGKILL has ended, and its process; "" for none."""
        recorded = self.record(purpose).read()
        if not recorded.get("process"):
            return ""
        from agents.ocf.process import Process

        process = Process.parse(recorded["process"])
        if process is None or not process.alive():
            return ""
        return f"{recorded.get('what', purpose)} (process {process.pid})"

    def await_changes(self) -> None:
        """Wait for a mount or umount of an action that was killed: it may still come true. Raises AgentError (1)."""
        until = time.monotonic() + self.time_left_s / 2
        while pending := self.pending("change"):
            self.doing = f"waiting for {pending}"
            if time.monotonic() >= until:
                raise AgentError(ERR_GENERIC, f"{pending} still hangs; the disk or server behind it does not answer")
            time.sleep(POLL_S)

    def demand_answer(self, outcome: Outcome, what: str) -> None:
        """Raises AgentError (1) when an access hung or failed."""
        if outcome.code is None:
            stuck = f" (process {outcome.stuck_pid})" if outcome.stuck_pid else ""
            raise AgentError(ERR_GENERIC, f"access to {self.directory} hung: no end of {what}{stuck}")
        if not outcome.is_good:
            raise AgentError(ERR_GENERIC, f"{what} failed: {outcome.last_line}")

    # --- monitor -------------------------------------------------------------------------------------------------

    def prove_alive(self, verdict: Verdict) -> None:
        """Levels 10 and 20: the device answers a read, and the file system a write. Raises AgentError (1)."""
        from agents.mounts import access

        assert verdict.mount is not None
        path = self.device_to_read(verdict.mount)
        directory = verdict.mount.point

        def read() -> None:
            if path:
                access.read_device(path)
            access.look_into(directory)

        what = f"direct read of {path or directory}"
        self.demand_answer(self.errand("access", what, read), what)
        if self.check_level < 20 or "ro" in self.option_words:
            return
        status = f"{directory}/{self.statusfile_prefix}{self.instance}_{posix.uname().nodename}"
        text = f"{self.instance} on {posix.uname().nodename} at {time.time():.3f}"
        what = "write of the status file"
        self.demand_answer(self.errand("access", what, lambda: access.write_and_read(status, text)), what)

    def device_to_read(self, mount: Mount) -> str:
        """Path of the mounted block device, "" without one."""
        if mount.is_on_block_device:
            return device_of(mount.number) or mount.source
        return mount.source if number_of(mount.source) else ""

    # --- start ---------------------------------------------------------------------------------------------------

    def mount_anew(self) -> None:
        """Check and mount. Raises AgentError when the file system is not mounted as wanted in the end."""
        from agents.mounts import access
        from agents.mounts.errand import program

        device = self.await_device()
        path = self.directory
        what = f"making of directory {path}"
        self.demand_answer(self.errand("access", what, lambda: access.make_directories(path, 0o755)), what)
        self.check_content(device)
        try:
            self.record("life").write({"device": self.device, "number": number_of(device)})
        except OSError as error:
            self.log.warning(f"{self.record('life').path} not written: {error.strerror}")
        wants_read_only = "ro" in self.option_words
        words = ["-t", self.fstype, *(["-o", self.options] if self.options else [])]
        # mount(8) would fall back to read-only where the device does not take writes
        words += [] if wants_read_only else ["-w"]
        outcome = self.errand(
            "change", f"mount of {path}", program(self.node.find_program("mount"), *words, device, path)
        )
        if outcome.code is None:
            raise AgentError(ERR_GENERIC, f"mount of {device} at {path} hung; its disk or server does not answer")
        verdict = self.verdict()
        if verdict.exit == SUCCESS:
            return
        if verdict.mount is not None:
            self.unmount_again(verdict.reason)
        said = outcome.first_line.removeprefix("mount: ").removeprefix(f"{path}: ").rstrip(".")
        raise AgentError(ERR_GENERIC, f"{path} not mounted: {verdict.reason if outcome.is_good else said}")

    def await_device(self) -> str:
        """Path of the configured device, which exists. Raises AgentError (5)."""
        if not is_block(self.device):
            return self.device
        until = time.monotonic() + min(DEVICE_PATIENCE_S, self.time_left_s / 4)
        while not number_of(path := self.find_device(thoroughly=True)):
            self.doing = f"waiting for device {self.device}"
            if time.monotonic() >= until:
                fact = f"device {self.device} does not exist on this node"
                raise AgentError(ERR_INSTALLED, f"{fact}; activate it before, or correct device")
            time.sleep(POLL_S)
        return path

    def check_content(self, device: str) -> None:
        """Run fsck where it is due. Raises AgentError (1) when it leaves errors."""
        from agents.mounts import check
        from agents.mounts.errand import program

        if not check.is_due(self.run_fsck, self.fstype, is_on_device=device.startswith("/")):
            return
        try:
            self.node.find_program(f"fsck.{self.fstype}")
        except AgentError as error:
            if self.run_fsck == "force":
                raise
            self.log.warning(f"{device} is not checked: {error.reason}")
            return
        fsck = self.node.find_program("fsck")
        outcome = self.errand("change", f"fsck of {device}", program(fsck, "-T", "-t", self.fstype, "-a", device))
        if outcome.code is None:
            raise AgentError(ERR_GENERIC, f"fsck of {device} did not end in time; raise the timeout of start")
        if outcome.code:
            self.log.warning(f"fsck of {device} said: {' / '.join(outcome.output.split(chr(10)))}")
        if outcome.code < 0 or outcome.code >= check.REFUSED_FROM:
            fact = f"fsck of {device} ended with {outcome.code}: {check.meaning(outcome.code)}"
            raise AgentError(ERR_GENERIC, f"{fact}; check it by hand")

    def unmount_again(self, reason: str) -> None:
        """Take back a mount that is not as it should be; nobody is ended for that. Raises AgentError (1)."""
        from agents.mounts.release import Release

        view = self.view()
        trouble = Release(self).unmount_all(view.to_unmount(view.numbers("")))
        if trouble:
            raise AgentError(ERR_GENERIC, f"{reason}, and cannot be unmounted: {trouble}")
