"""Rounds of one long run shared among laboratories that stand side by side."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.acceptance.cluster import Cluster, Service
from tests.soak.evidence import Figures
from vagrant.engines.layers import Layers
from vagrant.namespaces.lab import Lab

LABORATORIES = 2


def shared(first: int, count: int, play: Callable[[Cluster, int], Figures]) -> Iterator[Figures]:
    """The figures of each round, as they come; `play` gets a cluster with the service running, and the round's number.

    Raises whatever a round raises; the laboratories end with this process.
    """
    results: queue.Queue[Figures | BaseException] = queue.Queue()
    rounds = iter(range(first, first + count))
    taking = threading.Lock()

    def work(layers: tuple[Path, ...]) -> None:
        try:
            with Lab(engine="debian", layers=layers, log=sys.stderr) as lab:
                cluster = Cluster(lab)
                cluster.wait_online()
                cluster.create(Service())
                cluster.wait("service somewhere", lambda view: len(view.active.get("shop-app", [])) == 1)
                cluster.wait_idle()
                while True:
                    with taking:
                        number = next(rounds, None)
                    if number is None:
                        return
                    results.put(play(cluster, number))
        except BaseException as error:
            results.put(error)
            raise

    with TemporaryDirectory(prefix="mirrorha-soak-") as directory:
        layers = Layers.build(Path(directory))
        threads = [threading.Thread(target=work, args=(layers,), daemon=True) for _ in range(min(LABORATORIES, count))]
        for thread in threads:
            thread.start()
        for _ in range(count):
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            yield result
        for thread in threads:
            thread.join()
