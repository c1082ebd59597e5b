from __future__ import annotations

import typing
from typing import Any

import pytest

from replication.executor import MAX_FAILURES_IN_A_ROW, Executor
from replication.protocol import effects
from replication.protocol.effects import (
    Answer,
    Buffer,
    CallHandler,
    Complete,
    DeviceFailed,
    DropLink,
    Effect,
    FlushData,
    Note,
    Persist,
    ReadForClients,
    SaveRecord,
    Send,
    SendBlock,
    StateChanged,
    Stream,
    WriteData,
    Zero,
)
from replication.protocol.errors import DiskFailure
from replication.protocol.requests import Request
from replication.protocol.states import State


class World:
    """All ports in one: writes down what it was asked for, and fails where it was told to."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []
        self.broken: set[str] = set()
        self.instead: list[Effect] = []
        self.failed: list[tuple[Effect, str]] = []
        self.executor = Executor(
            self.disk_failed, Platters(self), Wire(self), Users(self), Notebook(self), Watcher(self)
        )

    def do(self, what: str, *details: Any) -> None:
        if what in self.broken:
            raise DiskFailure("disk /dev/x", f"{what} failed")
        self.done.append((what, *details))

    def disk_failed(self, effect: Effect, fact: str) -> list[Effect]:
        self.failed.append((effect, fact))
        return self.instead


class Part:
    def __init__(self, world: World) -> None:
        self.world = world


class Platters(Part):
    def write(self, writes: list[tuple[int, Buffer]]) -> None:
        self.world.do("write", writes)

    def read(self, offset: int, length: int) -> Buffer:
        self.world.do("read", offset, length)
        return b"d" * length

    def zero(self, offset: int, length: int, may_unmap: bool) -> None:
        self.world.do("zero", offset, length, may_unmap)

    def start_flush(self, token: int) -> None:
        self.world.do("flush", token)

    def persist(self, what: str, writes: list[tuple[int, bytes]]) -> None:
        self.world.do("persist", what, writes)


class Wire(Part):
    def send(self, stream: Stream, buffers: list[Buffer]) -> None:
        self.world.do("send", stream, buffers)

    def drop(self, fact: str) -> None:
        self.world.do("drop", fact)


class Users(Part):
    def complete(self, requests: list[Request]) -> None:
        self.world.do("complete", requests)

    def read(self, requests: list[Request]) -> None:
        self.world.do("read for clients", requests)

    def device_failed(self, fact: str) -> None:
        self.world.do("device failed", fact)


class Notebook(Part):
    def save(self, record: dict[str, Any]) -> None:
        self.world.do("save", record)


class Watcher(Part):
    def state_changed(self, effect: StateChanged) -> None:
        self.world.do("state", effect)

    def note(self, effect: Note) -> None:
        self.world.do("note", effect)

    def answer(self, effect: Answer) -> None:
        self.world.do("answer", effect)

    def call_handler(self, name: str) -> None:
        self.world.do("handler", name)


ONE_OF_EACH: list[tuple[Effect, list[tuple[Any, ...]]]] = [
    (Send(Stream.META, [b"a"]), [("send", Stream.META, [b"a"])]),
    (SendBlock(b"h", 8, 2), [("read", 8, 2), ("send", Stream.DATA, [b"h", b"dd"])]),
    (WriteData([(0, b"w")]), [("write", [(0, b"w")])]),
    (Zero(0, 8, True), [("zero", 0, 8, True)]),
    (FlushData(3), [("flush", 3)]),
    (Persist("bitmap", [(0, b"p")]), [("persist", "bitmap", [(0, b"p")])]),
    (SaveRecord({"a": 1}), [("save", {"a": 1})]),
    (ReadForClients([]), [("read for clients", [])]),
    (Complete([]), [("complete", [])]),
    (DropLink("why"), [("drop", "why")]),
    (StateChanged(State(), State(), "why"), [("state", StateChanged(State(), State(), "why"))]),
    (Note("text"), [("note", Note("text"))]),
    (CallHandler("fence-peer"), [("handler", "fence-peer")]),
    (DeviceFailed("why"), [("device failed", "why")]),
    (Answer(1), [("answer", Answer(1))]),
]


@pytest.mark.parametrize(("effect", "done"), ONE_OF_EACH, ids=[type(effect).__name__ for effect, _ in ONE_OF_EACH])
def test_each_effect_becomes_its_call(effect: Effect, done: list[tuple[Any, ...]]) -> None:
    world = World()
    world.executor.carry_out([effect])
    assert world.done == done


def test_no_effect_is_unknown() -> None:
    kinds = {kind for kind in vars(effects).values() if isinstance(kind, type) and issubclass(kind, Effect)}
    assert {type(effect) for effect, _ in ONE_OF_EACH} == kinds - {Effect}


def test_what_was_decided_is_done_in_that_order() -> None:
    world = World()
    world.executor.carry_out(effect for effect, _ in ONE_OF_EACH)
    assert world.done == [call for _, calls in ONE_OF_EACH for call in calls]


DISK_EFFECTS = [
    (WriteData([(0, b"w")]), "write"),
    (Zero(0, 8, True), "zero"),
    (FlushData(3), "flush"),
    (Persist("bitmap", []), "persist"),
    (SendBlock(b"h", 8, 2), "read"),
    (SaveRecord({}), "save"),
]


@pytest.mark.parametrize(("effect", "broken"), DISK_EFFECTS, ids=[broken for _, broken in DISK_EFFECTS])
def test_after_a_disk_failure_nothing_of_the_old_plan_is_done(effect: Effect, broken: str) -> None:
    world = World()
    world.broken.add(broken)
    world.instead = [Note("detached")]
    world.executor.carry_out([Note("before"), effect, Send(Stream.META, [b"written"])])
    assert world.done == [("note", Note("before")), ("note", Note("detached"))]
    assert world.failed == [(effect, f"disk /dev/x: {broken} failed")]


def test_a_failure_while_acting_on_a_failure_is_told_too() -> None:
    world = World()
    world.broken |= {"write", "persist"}
    world.instead = [Persist("superblock", [])]

    def disk_failed(effect: Effect, fact: str) -> list[Effect]:
        world.failed.append((effect, fact))
        return [Persist("superblock", [])] if isinstance(effect, WriteData) else [Note("gave up")]

    executor = Executor(disk_failed, Platters(world), Wire(world), Users(world), Notebook(world), Watcher(world))
    executor.carry_out([WriteData([(0, b"")])])
    assert [type(effect) for effect, _ in world.failed] == [WriteData, Persist]
    assert world.done == [("note", Note("gave up"))]


def test_a_volume_that_never_lets_go_of_a_broken_disk_is_stopped() -> None:
    world = World()
    world.broken.add("persist")
    world.instead = [Persist("superblock", [])]
    with pytest.raises(AssertionError, match="goes on using a disk that fails"):
        world.executor.carry_out([Persist("superblock", [])])
    assert len(world.failed) == MAX_FAILURES_IN_A_ROW


def test_a_port_that_calls_back_is_a_bug_not_another_order() -> None:
    world = World()
    users = Users(world)

    class Impatient(Wire):
        def send(self, stream: Stream, buffers: list[Buffer]) -> None:
            executor.carry_out([Note("me first")])

    executor = Executor(world.disk_failed, Platters(world), Impatient(world), users, Notebook(world), Watcher(world))
    with pytest.raises(AssertionError, match="called back"):
        executor.carry_out([Send(Stream.DATA, []), Complete([])])
    assert world.done == []


def test_a_power_cut_in_the_middle_leaves_an_executor_that_can_be_used() -> None:
    class PowerCut(Exception):
        pass

    class Cut(Platters):
        def persist(self, what: str, writes: list[tuple[int, bytes]]) -> None:
            raise PowerCut

    world = World()
    executor = Executor(world.disk_failed, Cut(world), Wire(world), Users(world), Notebook(world), Watcher(world))
    with pytest.raises(PowerCut):
        executor.carry_out([Persist("superblock", []), Note("never")])
    executor.carry_out([Note("again")])
    assert world.done == [("note", Note("again"))]


def test_the_ports_are_what_the_fakes_here_fulfil() -> None:
    assert set(typing.get_type_hints(Executor.__init__)) >= {"disk", "link", "clients", "records", "observer"}
