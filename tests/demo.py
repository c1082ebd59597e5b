"""`make demo`: an address and an application that survive what happens to their host, told as it happens.

Boots the laboratory with the distribution's own corosync and pacemaker, lets them run our agents, and breaks things
while a client asks for an answer twenty times a second. Writes build/demo.json. Ends with an error if the address was
ever active twice, or if the service did not come back.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.acceptance.cluster import ADDRESS, PORT, Cluster, Service
from tests.acceptance.watch import Watch
from vagrant.engines.layers import Layers
from vagrant.namespaces.lab import Lab

PROJECT = Path(__file__).resolve().parents[1]
ENGINE = "debian"


class Story:
    """Prints a line for each thing that happens, and keeps them for the report."""

    def __init__(self) -> None:
        self.start_s = time.monotonic()
        self.timeline: list[dict[str, Any]] = []

    def tell(self, text: str) -> None:
        at_s = round(time.monotonic() - self.start_s, 1)
        self.timeline.append({"at_s": at_s, "event": text})
        print(f"  {at_s:6.1f} s  {text}", flush=True)


def chapter(story: Story, watch: Watch, what: str, act: Callable[[], None]) -> float:
    """Let one thing happen and wait until clients are served again; returns how long they were not, in seconds."""
    before = len(watch.outages())
    story.tell(what)
    act()
    answer = watch.wait_for_answer()
    outage_s = max((outage.duration_s for outage in watch.outages()[before:]), default=0.0)
    waited = f"clients waited {outage_s:.1f} s" if outage_s else "no request of the client was lost"
    story.tell(f"... served by {answer.split()[2]}; {waited}")
    return outage_s


def tell_story(lab: Lab, story: Story) -> dict[str, Any]:
    cluster = Cluster(lab)
    cluster.wait_online()
    story.tell("alpha and beta are up: Debian's corosync and pacemaker, fencing by a power switch")
    cluster.create(Service())
    cluster.wait("service somewhere", lambda view: len(view.active.get("shop-app", [])) == 1)
    cluster.settle("alpha")
    story.tell(f"service shop (address {ADDRESS}, application on port {PORT}) runs on alpha")

    def kill_application() -> None:
        cluster.hosts["alpha"].check_output("pkill -KILL -f '[g]reeter.py'")
        watch.wait_for_silence()
        watch.wait_for_answer()

    def cut_power() -> None:
        lab.power_cut("alpha")
        watch.wait_for_silence()

    with Watch(lab) as watch:
        switch_s = chapter(story, watch, "planned switch to beta", lambda: cluster.switch("beta"))
        back_s = chapter(story, watch, "planned switch back to alpha", lambda: cluster.switch("alpha"))
        application_s = chapter(story, watch, "the application on alpha is killed", kill_application)
        cluster.settle("alpha")
        story.tell("failures forgotten, service on alpha again")
        crash_s = chapter(story, watch, "alpha loses its mains power", cut_power)
        cluster.wait_active("beta")
        lab.power_on("alpha")
        watch.watch_node("alpha")
        cluster.wait_online()
        cluster.wait_idle()
        story.tell(f"alpha has booted and rejoined; the service stays on {cluster.active_node()}")
    watch.assert_never_twice()
    story.tell("at no moment did two hosts hold the address, or two answer for it")
    return {
        "engine": ENGINE,
        "switch_outage_s": round(max(switch_s, back_s), 2),
        "application_outage_s": round(application_s, 2),
        "crash_outage_s": round(crash_s, 2),
        "double_active": 0,
    }


def main() -> None:
    story = Story()
    print("mirrorha demo: what a client notices of a switch, a crash and a power cut\n")
    log_path = PROJECT / "build" / "demo.log"
    log_path.parent.mkdir(exist_ok=True)
    with (
        TemporaryDirectory(prefix="mirrorha-demo-") as directory,
        log_path.open("w", encoding="utf-8") as log,
        Lab(engine=ENGINE, layers=Layers.build(Path(directory)), log=log) as lab,
    ):
        try:
            figures = tell_story(lab, story)
        except AssertionError as error:
            sys.exit(f"\ndemo: FAILED: {error}\nThe laboratory's messages are in {log_path}")
    report = PROJECT / "build" / "demo.json"
    report.write_text(json.dumps({**figures, "timeline": story.timeline}, indent=2) + "\n", encoding="utf-8")
    switch_s, crash_s = figures["switch_outage_s"], figures["crash_outage_s"]
    print(f"\nClients waited {switch_s} s in a planned switch, {crash_s} s after a power cut.")
    print(f"Figures and timeline: {report.relative_to(PROJECT)}")


if __name__ == "__main__":
    main()
