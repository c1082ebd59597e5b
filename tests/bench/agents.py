"""Our agents against the shell agents they stand in for: the same action, in turn, in the same namespaces."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.agents import cell, namespaces
from tests.agents.namespaces import OCF
from tests.bench.rows import Row, row

STOPWATCH = Path(__file__).with_name("stopwatch.py")
OURS, HEARTBEAT = f"{OCF}/resource.d/mirrorha", f"{OCF}/resource.d/heartbeat"
IP = "10.77.0.60"
MONITOR_RUNS, START_RUNS = 41, 9
Enter = Callable[..., list[str]]
Cases = list[dict[str, Any]]
"""Two for the stopwatch: ours, theirs."""
Measured = dict[str, list[dict[str, float]]]


def call(agent: str, action: str, directory: str = "/run/resource-agents", **parameters: str) -> dict[str, Any]:
    """One agent action as a case for the stopwatch."""
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "OCF_ROOT": OCF,
        "OCF_RESOURCE_INSTANCE": "bench",
        "OCF_RESKEY_CRM_meta_timeout": "20000",
        "HA_RSCTMP": directory,
        "HA_LOGFILE": "/dev/null",
        **({"OCF_RESKEY_CRM_meta_interval": "10000"} if action == "monitor" else {}),
        **{f"OCF_RESKEY_{name}": value for name, value in parameters.items()},
    }
    return {"argv": [agent, action], "env": environment}


def measure(enter: Enter, cases: Cases, runs: int) -> Measured:
    """Both cases in turn, `runs` times each, by a stopwatch inside the namespaces."""
    order = json.dumps({"runs": runs, "cases": dict(zip(("ours", "theirs"), cases, strict=True))})
    command = enter("/usr/bin/python3", "-I", str(STOPWATCH))
    done = subprocess.run(command, input=order, capture_output=True, text=True, check=True)
    measured: Measured = json.loads(done.stdout)
    return measured


def compared(case: str, peer: str, measured: Measured, figure: str, bar: float | None) -> Row:
    ours, theirs = ([one[figure] for one in measured[side]] for side in ("ours", "theirs"))
    return row(case, "ms", ours, peer, theirs, bar)


def virtual_ip(root: Path) -> Iterator[Row]:
    """VirtualIP against IPaddr2, on an interface that both are told."""
    common = {"ip": IP, "nic": "eth0", "cidr_netmask": "24"}
    with namespaces.network(root) as network:
        host = network.alpha
        host.ip(f"address add {IP}/24 brd + dev eth0")
        agents = [call(f"{where}", "monitor", **common) for where in (f"{OURS}/VirtualIP", f"{HEARTBEAT}/IPaddr2")]
        measured = measure(host.enter, agents, MONITOR_RUNS)
        yield compared("agent/virtualip-monitor", "IPaddr2", measured, "wall_ms", 0.5)
        yield compared("agent/virtualip-monitor-cpu", "IPaddr2", measured, "cpu_ms", 0.5)
        for case, we_ask, they_ask, bar in (
            ("agent/virtualip-start", "off", "false", 1.0),
            ("agent/virtualip-start-conflict-check", "on", "true", 1.0),
            ("agent/virtualip-start-defaults", "on", "false", None),  # ours asks by default, theirs does not
        ):
            network.reset()
            ours, theirs = {**common, "conflict_check": we_ask}, {**common, "run_arping": they_ask}
            starts = [
                {**call(agent, "start", **words), "after": call(agent, "stop", **words), "announces": IP, "nic": "eth0"}
                for agent, words in ((f"{OURS}/VirtualIP", ours), (f"{HEARTBEAT}/IPaddr2", theirs))
            ]
            yield compared(case, "IPaddr2", measure(host.enter, starts, START_RUNS), "announced_ms", bar)


def application(root: Path) -> Iterator[Row]:
    """Application against `anything`: a monitor of a running program, and a stop of nothing."""
    with cell.cell(root) as place:
        directory = str(place.directory)
        ours = {"command": "sleep 100000"}
        theirs = {"binfile": "/bin/sleep", "cmdline_options": "100001", "pidfile": f"{directory}/anything.pid"}

        def both(action: str) -> Cases:
            return [
                call(f"{OURS}/Application", action, directory, **ours),
                call(f"{HEARTBEAT}/anything", action, directory, **theirs),
            ]

        measure(place.enter, both("start"), 1)
        assert len(place.named("sleep 10000")) == 2, "both must run, or there is nothing to compare"
        yield compared(
            "agent/application-monitor",
            "anything",
            measure(place.enter, both("monitor"), MONITOR_RUNS),
            "wall_ms",
            None,
        )
        measure(place.enter, both("stop"), 1)
        yield compared(
            "agent/application-stop-nothing",
            "anything",
            measure(place.enter, both("stop"), MONITOR_RUNS),
            "wall_ms",
            None,
        )
