"""Fifty power cuts of the active host in a row; two laboratories share the work."""

from __future__ import annotations

import queue
import statistics
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.acceptance.cluster import Cluster, Service
from tests.acceptance.watch import Watch
from tests.soak.evidence import Case, Figures
from vagrant.engines.layers import Layers
from vagrant.namespaces.lab import Lab

LABORATORIES = 2


def cut_once(cluster: Cluster) -> Figures:
    """Cut the active host, wait for the other, power on, wait for the return. Raises AssertionError."""
    victim = cluster.active_node()
    survivor = cluster.other(victim)
    with Watch(cluster.lab) as watch:
        cluster.lab.power_cut(victim)
        watch.wait_for_silence()
        answer = watch.wait_for_answer()
        assert survivor in answer, answer
        cluster.wait_active(survivor)
        cluster.lab.power_on(victim)
        watch.watch_node(victim)
        cluster.wait_online()
        cluster.wait_idle()
        assert cluster.active_node() == survivor
    watch.assert_never_twice()
    return {"victim": victim, "outage_s": round(watch.longest_outage_s(), 2), "double_active": 0}


def run(first: int, count: int) -> Iterator[Figures]:
    results: queue.Queue[Figures | BaseException] = queue.Queue()
    rounds = iter(range(first, first + count))
    lock = threading.Lock()

    def work(layers: tuple[Path, ...]) -> None:
        try:
            with Lab(engine="debian", layers=layers, log=sys.stderr) as lab:
                cluster = Cluster(lab)
                cluster.wait_online()
                cluster.create(Service())
                cluster.wait("service somewhere", lambda view: len(view.active.get("shop-app", [])) == 1)
                cluster.wait_idle()
                while True:
                    with lock:
                        if next(rounds, None) is None:
                            return
                    results.put(cut_once(cluster))
        except BaseException as error:
            results.put(error)
            raise

    with TemporaryDirectory(prefix="mirrorha-soak-") as directory:
        layers = Layers.build(Path(directory))
        for _ in range(LABORATORIES):
            threading.Thread(target=work, args=(layers,), daemon=True).start()
        for _ in range(count):
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            yield result


def summary(figures: list[Figures]) -> Figures:
    outages = [float(one["outage_s"]) for one in figures]
    return {
        "power_cuts": len(figures),
        "double_active": sum(int(one["double_active"]) for one in figures),
        "outage_s_median": round(statistics.median(outages), 2),
        "outage_s_max": max(outages),
    }


CASE = Case(
    name="power-cuts",
    proves="After each of 50 power cuts of the active host the other serves, and the address is never active twice.",
    covers=(
        "agents/**/*.py",
        "vagrant/**/*",
        "tests/acceptance/*.py",
        "tests/acceptance/programs/*",
        "tests/soak/power_cuts.py",
    ),
    rounds=50,
    run=run,
    summary=summary,
)
