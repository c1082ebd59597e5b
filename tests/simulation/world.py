"""One run from one seed: clock, network, two nodes, clients, manager, faults, oracle. Nothing else is random."""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from replication.protocol.options import Fencing, Takeover, VolumeOptions
from replication.protocol.packets import FEATURES, Feature
from replication.protocol.states import DiskState, Role
from tests.simulation.checkers import InvariantBroken, Oracle
from tests.simulation.faults import Fault, Killed, PowerCut, random_strike
from tests.simulation.manager import Manager
from tests.simulation.network import Network
from tests.simulation.node import Node, Variation, layout_of, options_of
from tests.simulation.workload import Workload

TRACE_LINES = 30
SETTLE_BOUND_S = 90.0
"""After the last fault both sides are Connected and UpToDate within this."""
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """What kind of run this seed is."""

    chaos_s: float
    fault_every_s: float
    split_brain: bool
    disk_errors: bool
    capacity_bytes: int
    ring_blocks: int

    @staticmethod
    def of(rng: random.Random, chaos_s: float | None = None) -> Plan:
        return Plan(
            chaos_s=chaos_s if chaos_s is not None else rng.uniform(4.0, 14.0),
            fault_every_s=rng.choice([0.3, 0.8, 2.0]),
            split_brain=rng.random() < 0.15,
            disk_errors=rng.random() < 0.3,
            capacity_bytes=rng.choice([9, 17, 22]) * MIB + 512 * rng.randrange(0, 17),
            ring_blocks=rng.choice([2, 3, 4]),
        )


def options_from(rng: random.Random, plan: Plan) -> VolumeOptions:
    consistent = rng.random() < 0.2 and not plan.split_brain
    fencing = Fencing.RESOURCE_AND_STONITH if consistent or (rng.random() < 0.1 and not plan.split_brain) else None
    return VolumeOptions(
        resource="r0",
        local_name="alpha",
        peer_name="beta",
        timeout_s=0.5,
        ping_interval_s=rng.choice([0.5, 1.0, 3.0]),
        ping_timeout_s=0.3,
        connect_interval_s=0.3,
        ko_count=rng.choice([2, 4]),
        max_epoch_size=rng.choice([1, 3, 20, 2048]),
        epoch_idle_s=rng.choice([0.05, 0.2]),
        hmac_algorithm=rng.choice(["", "sha256"]),
        shared_secret="a secret",
        fencing=fencing or Fencing.DONT_CARE,
        takeover=Takeover.CONSISTENT if consistent else Takeover.MANUAL,
        al_extents=rng.choice([2, 3, 5]),
        resync_rate_max=rng.choice([0, 100 * MIB]),
        resync_in_flight=rng.choice([1, 4, 16]),
        use_rle=rng.random() < 0.7,
        features=FEATURES if rng.random() < 0.7 else FEATURES & ~Feature.BARRIERS_ASK,  # else as with a kernel
    )


class World:
    def __init__(
        self,
        seed: int,
        variation: Variation | None = None,
        *,
        chaos_s: float | None = None,
        print_line: Callable[[str], None] | None = None,
    ) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.variation = variation or Variation()
        self.now = 1000.0 * self.rng.random()
        """Seconds; no run starts at 0, so that whoever takes another clock is noticed."""
        self.events = 0
        self.faults: Counter[Fault] = Counter()
        self.settling_since = 0.0
        self._print_line = print_line
        self._queue: list[tuple[float, int, str, Callable[[], None]]] = []
        self._number = 0
        self._trace: deque[str] = deque(maxlen=TRACE_LINES)
        self._boot_at: dict[int, float] = {}
        self.plan = Plan.of(self.rng, chaos_s)
        self.options = options_from(self.rng, self.plan)
        layout = layout_of(self.plan.capacity_bytes, self.plan.ring_blocks)
        self.network = Network(self, random.Random(self.rng.random()))
        self.oracle = Oracle(self, layout.data_bytes)
        first, second = ("alpha", "beta")
        self.nodes = (
            Node(self, 0, options_of(self.options, first, second), layout),
            Node(self, 1, options_of(self.options, second, first), layout),
        )
        self.network.answers = lambda index: self.nodes[index].powered
        self.workload = Workload(self, layout.data_bytes)
        self.manager = Manager(self)
        for node in self.nodes:
            node.create_metadata()
            self.oracle.watch(node)

    # clock

    def after(self, delay_s: float, label: str, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay_s, self.next_number(), label, action))

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def run(self, until_event: int | None = None) -> None:
        """To the end, or to that event. Raises InvariantBroken, and whatever a bug of the volume raises."""
        for node in self.nodes:
            node.boot()
        for every in (self._caretaker, self._connector):
            every()
        self.manager.start()
        self.workload.start()
        self.after(1.0 + self.rng.random(), "fault", self._fault)
        chaos_ends = self.now + self.plan.chaos_s
        while until_event is None or self.events < until_event:
            if not self.settling_since and self.now >= chaos_ends:
                self._calm()
            if self.settling_since and self._settled():
                self._final_checks()
                return
            self._next_event()

    def _next_event(self) -> None:
        self.now, _, _, action = heapq.heappop(self._queue)
        self.events += 1
        action()
        self.oracle.after_event()

    # words

    def say(self, node: Node, text: str) -> None:
        self.note(f"{node.name}: {text}")

    def note(self, text: str) -> None:
        line = f"{self.events:6} {self.now:9.4f}  {text}"
        self._trace.append(line)
        if self._print_line is not None:
            self._print_line(line)

    def count(self, fault: Fault) -> None:
        self.faults[fault] += 1
        self.note(f"FAULT {fault.value}")

    def describe(self) -> str:
        return "; ".join(node.describe() for node in self.nodes)

    def report(self, error: BaseException) -> str:
        """What a failed run says, with the line that replays it."""
        name = error.invariant if isinstance(error, InvariantBroken) else type(error).__name__
        return "\n".join(
            [
                f"seed {self.seed}: invariant {name} broken at event {self.events}, time {self.now:.4f}",
                f"  {error}",
                f"  {self.describe()}",
                f"  {self.plan}",
                "  the last lines:",
                *(f"    {line}" for line in self._trace),
                f"  replay: python -m tests.simulation --seed {self.seed} --until {self.events} --verbose",
            ]
        )

    # who keeps nodes running, and connected

    def _caretaker(self) -> None:
        """Starts what is down, some time later; restarts what has lost its disk."""
        self.after(0.1, "caretaker", self._caretaker)
        for node in self.nodes:
            if node.volume is not None and (node.paused or node.volume.state.disk is not DiskState.DISKLESS):
                self._boot_at.pop(node.index, None)
                continue
            slowest = 0.3 if self.settling_since else self.rng.choice([0.3, 3.0])
            due = self._boot_at.setdefault(node.index, self.now + slowest * self.rng.random())
            if self.now >= due:
                del self._boot_at[node.index]
                if node.volume is not None:
                    self.oracle.nobody_waits_for_a_failed_disk(node)
                    node.die(Killed("to be given its disk again"))
                node.power_on()
                node.boot()

    def _connector(self) -> None:
        self.after(0.05 + 0.2 * self.rng.random(), "connector", self._connector)
        if not all(
            node.running and node.end is None and node.volume is not None and node.volume.wants_link
            for node in self.nodes
        ):
            return
        session = self.network.connect()
        if session is None:
            return
        accepts = self.rng.randrange(2)
        for node in self.nodes:
            end = session.ends[node.index]
            resolve = node.index == accepts
            self.after(
                self.network.delay(),
                "link up",
                lambda node=node, end=end, resolve=resolve: node.link_up(  # type: ignore[misc]
                    end, resolve_conflicts=resolve
                ),
            )

    def handler(self, node: Node, name: str) -> int:
        return self.manager.fence(node) if name == "fence-peer" else 0

    # faults

    def _fault(self) -> None:
        if self.settling_since:
            return
        self.after(self.rng.expovariate(1 / self.plan.fault_every_s), "fault", self._fault)
        if not self.manager.initialised:
            return
        node = self.rng.choice(self.nodes)
        chance = self.rng.random()
        if chance < 0.25:
            node.strikes.arm(random_strike(self.rng))
        elif chance < 0.30:
            self._power_cut(node)
        elif chance < 0.34:
            if node.volume is not None:
                self.count(Fault.KILL)
                node.die(Killed("between two effects"))
        elif chance < 0.37:
            self.count(Fault.BOTH_OFF)
            for either in self.nodes:
                self._power_cut(either)
        elif chance < 0.52:
            self._pause(node)
        elif chance < 0.66:
            self.count(Fault.CUT)
            self._cut(0, 1)
        elif chance < 0.74:
            self.count(Fault.CUT_ONE_WAY)
            self._cut(node.index)
        elif chance < 0.86:
            if self.network.session is not None and not self.network.session.over:
                self.count(Fault.RESET)
                self.network.reset()
        elif chance < 0.92:
            self.count(Fault.SLOW_LINK)
            self.network.latency_s = self.rng.choice([0.01, 0.08])
            self.after(2.0 * self.rng.random(), "fast again", self._fast)
        elif self.plan.disk_errors and node.volume is not None:
            self.count(Fault.READ_ERROR if chance < 0.95 else Fault.WRITE_ERROR)
            if chance < 0.95:
                node.disk.reads_fail = True
            else:
                node.disk.writes_fail = True

    def _power_cut(self, node: Node) -> None:
        if node.powered:
            self.count(Fault.POWER_CUT)
            node.die(PowerCut("between two effects"))

    def _pause(self, node: Node) -> None:
        if not node.running:
            return
        self.count(Fault.PAUSE)
        life = node.life
        node.pause()
        length_s = self.rng.choice([0.1, 1.0, 5.0]) * self.rng.random()
        self.after(length_s, "resume", lambda: node.resume() if node.life == life and node.paused else None)

    def _cut(self, *senders: int) -> None:
        for sender in senders:
            self.network.set_cut(sender, cut=True)
        length_s = self.rng.choice([0.1, 1.0, 5.0]) * self.rng.random()
        self.after(length_s, "heal", lambda: self._heal(*senders))

    def _heal(self, *senders: int) -> None:
        for sender in senders:
            self.network.set_cut(sender, cut=False)

    def _fast(self) -> None:
        self.network.latency_s = 0.0005

    # the end

    def _calm(self) -> None:
        """No more faults: from here on everything must come right."""
        self.note("no more faults")
        self.settling_since = self.now
        self.manager.settling = True
        self._fast()
        for sender in (0, 1):
            self.network.set_cut(sender, cut=False)
        for node in self.nodes:
            node.strikes.armed = None
            node.disk.reads_fail = node.disk.writes_fail = False
            if node.paused:
                node.resume()

    def _settled(self) -> bool:
        waited_s = self.now - self.settling_since
        if waited_s > 1.0:
            self.workload.going = False
        if waited_s > SETTLE_BOUND_S:
            raise InvariantBroken("comes right", f"{SETTLE_BOUND_S:.0f} s after the last fault: {self.describe()}")
        return waited_s > 1.0 and self.oracle.quiet_and_in_sync() and self.workload.idle

    def _final_checks(self) -> None:
        if self.oracle.differing:
            raise InvariantBroken("equal", f"blocks {sorted(self.oracle.differing)[:5]} differ at the end")
        primaries = [node for node in self.nodes if node.role is Role.PRIMARY]
        self.oracle.check(len(primaries) < 2, "one-writer", self.describe())
        for node in self.nodes:
            self.oracle.content_kept(node, "at the end")


def run(seed: int, variation: Variation | None = None, chaos_s: float | None = None) -> World:
    """A whole run. Raises AssertionError with the report of a failure."""
    world = World(seed, variation, chaos_s=chaos_s)
    try:
        world.run()
    except Exception as error:
        raise AssertionError(world.report(error)) from error
    return world
