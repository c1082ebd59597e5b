"""ocf:mirrorha:Mirror, in the place of linbit:drbd: one side of a mirror, promotable, over the command mirroradm.

The file asks and acts. What a status means is in `agents.mirroring.view`, what the manager is told in
`agents.mirroring.score`. Whether this side may be promoted is decided by mirrord alone, when it is asked to do it.
"""

from __future__ import annotations

import time

from agents.mirroring.answer import NOT_UP, Answer
from agents.mirroring.score import NOT_ELIGIBLE, score
from agents.mirroring.view import SECONDARY, View
from agents.ocf.agent import Agent, action
from agents.ocf.exit_code import (
    ERR_GENERIC,
    FAILED_PROMOTED,
    NOT_RUNNING,
    RUNNING_PROMOTED,
    SUCCESS,
    AgentError,
    OcfExit,
)
from agents.ocf.parameter import Seconds, Text
from agents.supervision.surroundings import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agents.mounts.errand import Outcome

# An action ends itself this much before the deadline would end it, because it can say what it was waiting for.
LAST_WORDS_S = 0.5
POLL_S = 0.2
# A refusal that depends on what is under way is asked again for so long: the peer's word that it was demoted, say.
PROMOTION_PATIENCE_S = 5.0
BEFORE_A_PROMOTION = "pre-promote"


class Mirror(Agent):
    """Runs one side of a mirror of two disks, and makes it the active side on demand.

    To be used as a promotable clone of two instances with notify=true. The start brings mirrord up and waits for the
    peer a moment; the device /dev/mirrorha/<resource>/0 exists only while promoted. A promotion is refused, with the
    reason and what to type, whenever the peer may hold newer data; the promotion score says so in advance. A side that
    lost its device or disk is failed. The stop never forces a device that is in use.
    """

    resource = Text(
        "Name of the mirror", "Resource as it is called in its .res file.", required=True, unique=True,
        unique_group="resource",
    )  # fmt: skip
    config = Path("Configuration", "The .res file, or the directory of all of them.", default="/etc/mirrorha/mirror.d")
    mirroradm = Text(
        "The command mirroradm", "Name or absolute path, where it is installed in a place of its own.",
        default="mirroradm",
    )  # fmt: skip
    wait_connect = Seconds(
        "Time to find the peer",
        "How long a start waits until the peer was met; it succeeds without it too, and is not eligible then.",
        default="5s",
        reloadable=True,
    )
    io_timeout = Seconds(
        "Longest wait for the device",
        "How long a monitor of the promoted side waits for one block of the device before it counts as hung.",
        default="10s",
        minimum="100ms",
        reloadable=True,
    )

    def check_node(self) -> None:
        self.node.find_program(self.mirroradm)

    # --- actions -------------------------------------------------------------------------------------------------

    @action(timeout_s=30, interval_s=10, role="Promoted")
    @action(timeout_s=30, interval_s=20, role="Unpromoted")
    def monitor(self) -> OcfExit:
        view = self.view()
        was_promoted = bool(self.record("promoted").read())
        if view is None:
            if was_promoted and not self.is_probe:
                raise AgentError(FAILED_PROMOTED, f"mirrord of {self.resource} died while it was promoted; see its log")
            return NOT_RUNNING
        self.publish(view, anew=self.is_probe)
        if not view.is_promoted:
            if view.reason:
                self.log.info(view.why)
            return SUCCESS
        if view.fault_of_promoted:
            raise AgentError(FAILED_PROMOTED, f"{self.resource}: {view.fault_of_promoted}")
        self.prove_alive(view)
        return RUNNING_PROMOTED

    @action(timeout_s=60)
    def start(self) -> OcfExit:
        self.check_node()
        self.record("promoted").remove()
        self.demand("up", f"waiting for mirrord of {self.resource}")
        view = self.await_peer()
        if view.is_promoted:  # somebody's hand, or a manager that lost its memory: a start comes up unpromoted
            self.demand("secondary", f"waiting until {self.resource} is demoted")
            view = self.must_view()
        self.publish(view, anew=True)
        return SUCCESS

    @action(timeout_s=60)
    def stop(self) -> OcfExit:
        answer = self.ask("down", f"waiting until {self.resource} is down", share=0.6)
        if answer.is_silence:
            # a mirrord that says nothing holds its device all the same: it must not outlive us
            self.log.warning(f"{answer.fact}; it is ended by force")
            answer = self.ask("down", f"waiting for the end of mirrord of {self.resource}", "--force")
        if not answer.is_done and answer.code != NOT_UP:
            raise AgentError(ERR_GENERIC, answer.fact)
        self.record("promoted").remove()
        self.tell_manager(None, must=False)
        return SUCCESS

    @action(timeout_s=60)
    def promote(self) -> OcfExit:
        self.doing = f"waiting until {self.resource} is promoted"
        until = time.monotonic() + min(PROMOTION_PATIENCE_S, self.time_left_s / 2)
        while not (answer := self.ask("primary", self.doing)).is_done:
            view = self.view()
            is_over = time.monotonic() >= until
            if not answer.is_refusal or is_over or view is None or not view.may_be_promoted_in_a_moment:
                if view is not None:
                    self.publish(view, anew=True)
                raise AgentError(ERR_GENERIC, answer.fact)
            time.sleep(POLL_S)
        try:
            self.record("promoted").write({"resource": self.resource})
        except OSError as error:
            self.log.warning(f"{self.record('promoted').path} not written: {error.strerror}")
        self.publish(self.must_view(), anew=True)
        return SUCCESS

    @action(timeout_s=60)
    def demote(self) -> OcfExit:
        answer = self.ask("secondary", f"waiting until {self.resource} is demoted")
        if not answer.is_done and answer.code != NOT_UP:
            raise AgentError(ERR_GENERIC, answer.fact)  # in use, most often; who uses it stands in the answer
        self.record("promoted").remove()
        if answer.code == NOT_UP:
            return NOT_RUNNING
        self.publish(self.must_view(), anew=True)
        return SUCCESS

    @action(timeout_s=20)
    def notify(self) -> OcfExit:
        kind = self.environment.get("OCF_RESKEY_CRM_meta_notify_type", "")
        event = f"{kind}-{self.environment.get('OCF_RESKEY_CRM_meta_notify_operation', '')}"
        view = self.view()
        if view is None:
            return SUCCESS
        if event == BEFORE_A_PROMOTION and not view.is_promoted and not view.has_met and not self.is_to_be_promoted():
            # the other side goes on without us: what we hold is old from its first write on
            answer = self.ask("outdate", f"marking {self.resource} as old")
            if not answer.is_done:
                self.log.warning(answer.fact)
            view = self.view() or view
        if kind == "post":
            self.publish(view, anew=True)
        return SUCCESS

    @action(timeout_s=10)
    def reload_agent(self) -> OcfExit:
        return SUCCESS  # every action reads the parameters afresh

    def is_to_be_promoted(self) -> bool:
        """By the transition that a notification announces."""
        hosts = self.environment.get("OCF_RESKEY_CRM_meta_notify_promote_uname", "").split()
        return self.node_name in hosts

    @property
    def node_name(self) -> str:
        import posix

        return self.environment.get("OCF_RESKEY_CRM_meta_on_node") or posix.uname().nodename

    # --- mirroradm -----------------------------------------------------------------------------------------------

    def ask(self, verb: str, doing: str, *options: str, share: float = 1.0) -> Answer:
        """Have mirroradm do it, within this share of what is left of our time. Raises AgentError (5) without it."""
        self.doing = doing
        limit_s = max(0.2, (self.time_left_s - LAST_WORDS_S) * share)
        words = [self.mirroradm, "-c", self.config, "-t", f"{limit_s:.1f}", verb, *options, self.resource]
        done = self.node.run(words, timeout_s=limit_s + LAST_WORDS_S / 2)
        return Answer(-9 if done.timed_out else done.code, done.output)

    def demand(self, verb: str, doing: str) -> None:
        """Raises AgentError (1) unless it is done."""
        answer = self.ask(verb, doing)
        if not answer.is_done:
            raise AgentError(ERR_GENERIC, answer.fact)

    def view(self) -> View | None:
        """None when no mirrord runs. Raises AgentError (1) when it cannot be asked."""
        import json

        answer = self.ask("status", f"asking mirrord of {self.resource}", "--json", share=0.5)
        if answer.code == NOT_UP:
            return None
        if not answer.is_done:
            raise AgentError(ERR_GENERIC, answer.fact)
        try:
            listed, _ = json.JSONDecoder().raw_decode(answer.text, answer.text.index("["))
            return View.of(listed[0])
        except (ValueError, IndexError) as error:
            raise AgentError(ERR_GENERIC, f"mirroradm status of {self.resource} is not understood: {error}") from None

    def must_view(self) -> View:
        view = self.view()
        if view is None:
            raise AgentError(ERR_GENERIC, f"mirrord of {self.resource} ended in the middle; see its log")
        return view

    def await_peer(self) -> View:
        """As it is once the peer was met, or the patience is over."""
        until = time.monotonic() + min(self.wait_connect, self.time_left_s / 2)
        self.doing = f"waiting for the peer of {self.resource}"
        while True:
            view = self.must_view()
            is_known = view.has_met and (view.peer_role == SECONDARY or bool(view.reason))
            if is_known or view.connection == "StandAlone" or time.monotonic() >= until:
                return view
            time.sleep(POLL_S)

    # --- the device ----------------------------------------------------------------------------------------------

    def prove_alive(self, view: View) -> None:
        """The device answers a read that no cache can answer. Raises AgentError (9) when it does not."""
        from agents.mounts import access
        from agents.mounts.errand import run
        from agents.ocf.process import Process

        record = self.record("access")
        recorded = record.read().get("process", "")
        earlier = Process.parse(recorded) if recorded else None
        if earlier is not None and earlier.alive():
            fact = f"an access to {view.device} (process {earlier.pid}) still hangs"
            raise AgentError(FAILED_PROMOTED, f"{fact}; the disk below, or mirrord, does not answer")
        self.doing = f"waiting for a read of {view.device}"

        def write_down(pid: int) -> None:
            record.write({"process": str(Process.of(pid) or "")})

        limit_s = max(0.0, min(self.io_timeout, self.time_left_s - LAST_WORDS_S))
        outcome: Outcome = run(lambda: access.read_device(view.device), write_down, limit_s)
        if outcome.stuck_pid:
            raise AgentError(FAILED_PROMOTED, f"a read of {view.device} hung for {limit_s:g} s")
        record.remove()
        if not outcome.is_good:
            fact = f"hung for {limit_s:g} s" if outcome.code is None else f"failed: {outcome.last_line}"
            raise AgentError(FAILED_PROMOTED, f"a read of {view.device} {fact}")

    # --- the manager ---------------------------------------------------------------------------------------------

    def publish(self, view: View, *, anew: bool) -> None:
        """Tell the manager how fit this side is. Unless `anew`, only what differs from what was said last."""
        value = score(view)
        if not anew and self.record("score").read().get("value") == value:
            return
        self.tell_manager(value, must=value == NOT_ELIGIBLE and self.action_name == "start")

    def tell_manager(self, value: str | None, *, must: bool) -> None:
        """`must`: raise AgentError (1) when the manager does not take it. Without a manager there is nobody to tell."""
        record = self.record("score")
        if not self.environment.get("OCF_RESKEY_crm_feature_set"):
            self.log.debug(f"no manager to be told of promotion score {value}")
            return
        try:
            self.node.set_promotion_score(value)
            if value is None:
                record.remove()
            else:
                record.write({"value": value})
        except AgentError as error:
            record.remove()
            if must:
                raise
            self.log.warning(error.reason)
        except OSError as error:
            self.log.warning(f"{record.path} not written: {error.strerror}")
