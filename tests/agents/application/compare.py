"""Application against the shell agent `anything`, in turn, in the same closed place: the figures for `make bench`."""

from __future__ import annotations

import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

import tests.agents.stopwatch
from tests.agents.cell import AGENT, OCF, Cell

STOPWATCH = Path(tests.agents.stopwatch.__file__)
RIVAL = f"{OCF}/resource.d/heartbeat/anything"
Result = dict[str, list[dict[str, float]]]


def call(cell: Cell, path: str, action: str, **parameters: str) -> dict[str, Any]:
    """One agent action as a case for the stopwatch."""
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "OCF_ROOT": OCF,
        "OCF_RESOURCE_INSTANCE": "bench",
        "OCF_RESKEY_CRM_meta_timeout": "20000",
        "HA_RSCTMP": str(cell.directory),
        "HA_LOGFILE": "/dev/null",
        **({"OCF_RESKEY_CRM_meta_interval": "10000"} if action == "monitor" else {}),
        **{f"OCF_RESKEY_{name}": value for name, value in parameters.items()},
    }
    return {"argv": [path, action], "env": environment}


def time_cases(cell: Cell, cases: dict[str, Any], runs: int) -> Result:
    order = json.dumps({"runs": runs, "cases": cases})
    command = cell.enter("/usr/bin/python3", "-I", str(STOPWATCH))
    done = subprocess.run(command, input=order, capture_output=True, text=True, check=True)
    result: Result = json.loads(done.stdout)
    return result


def median(result: Result, name: str, figure: str) -> float:
    return statistics.median(one[figure] for one in result[name])


def monitors(cell: Cell, runs: int) -> Result:
    """A monitor of a running program that each agent has started."""
    ours = {"command": "sleep 100000"}
    theirs = {"binfile": "/bin/sleep", "cmdline_options": "100001", "pidfile": str(cell.directory / "anything.pid")}
    agents = {"ours": (AGENT, ours), "theirs": (RIVAL, theirs)}

    def cases(action: str) -> dict[str, Any]:
        return {name: call(cell, path, action, **words) for name, (path, words) in agents.items()}

    time_cases(cell, cases("start"), 1)
    assert len(cell.named("sleep 10000")) == len(agents), "both must run, or there is nothing to compare"
    result = time_cases(cell, cases("monitor"), runs)
    time_cases(cell, cases("stop"), 1)
    return result


def stops_of_nothing(cell: Cell, runs: int) -> Result:
    """A stop where nothing was started."""
    theirs = {"binfile": "/bin/sleep", "pidfile": str(cell.directory / "none.pid")}
    cases = {
        "ours": call(cell, AGENT, "stop", command="sleep 100000"),
        "theirs": call(cell, RIVAL, "stop", **theirs),
    }
    return time_cases(cell, cases, runs)
