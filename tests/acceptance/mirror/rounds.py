"""One fault each, under load, from a healthy mirror to a healthy mirror: break, watch it heal, judge.

Every function starts with the file system mounted on the Primary `active`, ends with it mounted on the Primary that it
returns, and raises AssertionError when a promise was broken. Tests play a few rounds, long runs fifty.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Protocol

from tests.acceptance.mirror.load import StampedFile
from tests.acceptance.mirror.pair import MirrorPair, in_sync, is_disconnected
from tests.soak.evidence import Figures

LIVES_S = (0.1, 1.5)
"""How long the client may write before something breaks."""
CUTS_S = (0.1, 4.0)
"""Shorter ones than ping-int + ping-timeout may pass unnoticed; that is one of the cases."""
SCHEDULING_S = 1.0
"""What a busy machine may add to any time-out."""
SILENCE_BOUND_S = 1.5 + SCHEDULING_S
"""ping-int + ping-timeout: how long a write may wait for a peer that has gone silent."""
MEMORY_BOUND_KIB = 60 * 1024


class Round(Protocol):
    def __call__(self, stage: Stage, active: str, *, switch: bool) -> tuple[str, Figures]: ...


@dataclass
class Stage:
    """What all rounds of a run share."""

    pair: MirrorPair
    file: StampedFile
    chance: random.Random
    active: str
    """Who is Primary, and has it mounted."""

    @classmethod
    def set_up(cls, pair: MirrorPair, chance: random.Random) -> Stage:
        """From empty disks to a file system on the first node's device."""
        pair.create()
        pair.promote(pair.nodes[0])
        file = StampedFile(pair)
        file.create(pair.nodes[0])
        return cls(pair, file, chance, pair.nodes[0])

    def play(self, one_round: Round, *, switch: bool) -> Figures:
        """One round; the next begins where it ended."""
        self.active, figures = one_round(self, self.active, switch=switch)
        return figures

    def pass_time(self, between_s: tuple[float, float]) -> None:
        time.sleep(self.chance.uniform(*between_s))

    def judge(self, active: str, *, switch: bool) -> tuple[str, Figures]:
        """Nothing lost, nothing left, both disks equal, the file system sound.

        It begins when the client has ended, with the file system mounted on `active`.
        With `switch` the other side is the next Primary, and the content is read there.
        """
        pair, begin = self.pair, time.monotonic()
        pair.wait_in_sync()
        resync_s = time.monotonic() - begin
        self.file.unmount(active)
        pair.run(active, "e2fsck", "-f", "-n", pair.device)
        pair.demote(active)
        for node in pair.nodes:
            assert pair.leftovers(node) == [], f"{node}: something is left of the device"
        differing = pair.data_areas_differ()
        assert not differing, f"the disks differ in MiB {differing}\n{pair.logs()}"
        following = pair.other(active) if switch else active
        pair.promote(following)
        self.file.mount(following)
        self.file.assert_nothing_lost(following)
        memory = {node: pair.memory_kib(node) for node in pair.nodes}
        peak = max(one["VmHWM"] for one in memory.values())
        assert peak <= MEMORY_BOUND_KIB, f"a mirrord grew to {peak} KiB: {memory}"
        return following, {"wait_for_sync_s": round(resync_s, 2), "mirrord_peak_kib": peak}


def link_cut(stage: Stage, active: str, *, switch: bool) -> tuple[str, Figures]:
    """The data network loses every frame, one way or both, for a while; nobody lends a hand."""
    pair, chance = stage.pair, stage.chance
    standby = pair.other(active)
    source, target = chance.choice([(None, None), (active, standby), (standby, active)])
    with stage.file.client(active) as client:
        stage.pass_time(LIVES_S)
        pair.lab.cut("data", source, target)
        begin = time.monotonic()
        stage.pass_time(CUTS_S)
        noticed = is_disconnected(pair.status(active))
        pair.lab.heal("data")
        cut_s = time.monotonic() - begin
        if chance.random() < 0.5:  # else the client ends while the resync may still run
            pair.wait_in_sync()
        stage.pass_time(LIVES_S)
        client.end()
    longest_s = stage.file.oracle.longest_wait_s()
    assert longest_s <= SILENCE_BOUND_S, f"a write or flush waited {longest_s:.2f} s\n{pair.logs()}"
    following, figures = stage.judge(active, switch=switch)
    direction = "both" if source is None else f"from {source}"
    return following, {
        "active": active, "cut": direction, "cut_s": round(cut_s, 2), "noticed": noticed,
        "longest_wait_s": round(longest_s, 2), **_load(stage), **figures,
    }  # fmt: skip


def kill_standby(stage: Stage, active: str, *, switch: bool) -> tuple[str, Figures]:
    """kill -9 of mirrord on the Secondary. It is started again, as a service manager would; nothing else is done."""
    pair, chance = stage.pair, stage.chance
    standby = pair.other(active)
    with stage.file.client(active) as client:
        in_resync = _perhaps_into_a_resync(stage, active)
        pair.kill_mirrord(standby)
        left = [line for line in pair.leftovers(standby) if not line.startswith("socket ")]
        assert left == [], f"{standby}: the standby's death left {left}"
        stage.pass_time(CUTS_S)
        pair.up(standby)
        if chance.random() < 0.5:
            pair.wait_in_sync()
        stage.pass_time(LIVES_S)
        client.end()
    longest_s = stage.file.oracle.longest_wait_s()
    assert longest_s <= SILENCE_BOUND_S, f"a write or flush waited {longest_s:.2f} s\n{pair.logs()}"
    following, figures = stage.judge(active, switch=switch)
    return following, {
        "killed": "Secondary", "active": active, "in_resync": in_resync, "longest_wait_s": round(longest_s, 2),
        **_load(stage), **figures,
    }  # fmt: skip


def kill_active(stage: Stage, active: str, *, switch: bool) -> tuple[str, Figures]:
    """kill -9 of mirrord on the Primary: the device dies under its users, who are told; then the service is recovered.

    The recovery is the service's: unmount, start mirrord, become Primary, mount. The peer is not touched.
    """
    pair = stage.pair
    with stage.file.client(active) as client:
        in_resync = _perhaps_into_a_resync(stage, active)
        pair.kill_mirrord(active)
        begin = time.monotonic()
        client.wait_until_failed()
        failed_s = time.monotonic() - begin
    stage.file.unmount(active)
    _wait_until_only_the_socket_is_left(pair, active)
    pair.up(active)
    assert pair.leftovers(active) == []
    pair.wait_connected()
    pair.promote(active)
    stage.file.mount(active)
    stage.file.assert_nothing_lost(active)
    following, figures = stage.judge(active, switch=switch)
    return following, {
        "killed": "Primary", "active": active, "in_resync": in_resync, "client_told_after_s": round(failed_s, 2),
        **_load(stage), **figures,
    }  # fmt: skip


def _perhaps_into_a_resync(stage: Stage, active: str) -> bool:
    """Let the load run; one time in four, up to a random moment around the begin of a resync."""
    pair, chance = stage.pair, stage.chance
    stage.pass_time(LIVES_S)
    if chance.random() >= 0.25:
        return False
    pair.lab.cut("data")
    pair.wait(active, "the cut is noticed", is_disconnected)
    stage.pass_time(LIVES_S)
    pair.lab.heal("data")
    pair.wait(active, "connected again", lambda status: not is_disconnected(status))
    time.sleep(chance.uniform(0.0, 0.3))
    return not in_sync(pair.status(active))


def _wait_until_only_the_socket_is_left(pair: MirrorPair, node: str, timeout_s: float = 10.0) -> None:
    """A killed mirrord leaves the name of its socket; whatever was made of it must go by itself."""
    deadline = time.monotonic() + timeout_s
    while left := [line for line in pair.leftovers(node) if not line.startswith("socket ")]:
        assert time.monotonic() < deadline, f"{node}: left behind: {left}\n{pair.logs()}"
        time.sleep(0.05)


def _load(stage: Stage) -> Figures:
    """What the round's client did."""
    oracle = stage.file.oracle
    return {"writes": oracle.writes, "flushes": oracle.flushes}
