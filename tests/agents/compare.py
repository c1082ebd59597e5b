"""VirtualIP against the shell agent IPaddr2, in turn, in the same namespaces: the figures for `make bench`."""

from __future__ import annotations

import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

from tests.agents.namespaces import AGENT, OCF, Host

STOPWATCH = Path(__file__).with_name("stopwatch.py")
IP = "10.77.0.60"
RIVAL = f"{OCF}/resource.d/heartbeat/IPaddr2"
Result = dict[str, list[dict[str, float]]]


def call(path: str, action: str, **parameters: str) -> dict[str, Any]:
    """One agent action as a case for the stopwatch."""
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "OCF_ROOT": OCF,
        "OCF_RESOURCE_INSTANCE": "bench",
        "OCF_RESKEY_CRM_meta_timeout": "20000",
        **({"OCF_RESKEY_CRM_meta_interval": "10000"} if action == "monitor" else {}),
        **{f"OCF_RESKEY_{name}": value for name, value in parameters.items()},
    }
    return {"argv": [path, action], "env": environment}


def time_cases(host: Host, cases: dict[str, Any], runs: int) -> Result:
    command = host.enter("/usr/bin/python3", "-I", str(STOPWATCH))
    order = json.dumps({"runs": runs, "cases": cases})
    done = subprocess.run(command, input=order, capture_output=True, text=True, check=True)
    result: Result = json.loads(done.stdout)
    return result


def median(result: Result, name: str, figure: str) -> float:
    return statistics.median(one[figure] for one in result[name])


def monitors(host: Host, runs: int) -> Result:
    """A monitor of a present address, on an interface that both are told."""
    common = {"ip": IP, "nic": "eth0", "cidr_netmask": "24"}
    host.ip(f"address add {IP}/24 brd + dev eth0")
    cases = {
        "ours": call(f"{AGENT}/VirtualIP", "monitor", **common),
        "theirs": call(RIVAL, "monitor", **common),
    }
    return time_cases(host, cases, runs)


def starts(host: Host, runs: int, *, conflict_check: bool) -> Result:
    """A start up to the first announcement; both with or both without asking the network first."""
    common = {"ip": IP, "nic": "eth0", "cidr_netmask": "24"}
    ours = {**common, "conflict_check": "on" if conflict_check else "off"}
    theirs = {**common, "run_arping": "true" if conflict_check else "false"}
    cases = {
        name: {
            **call(path, "start", **parameters),
            "after": call(path, "stop", **parameters),
            "announces": IP,
            "nic": "eth0",
        }
        for name, path, parameters in (("ours", f"{AGENT}/VirtualIP", ours), ("theirs", RIVAL, theirs))
    }
    return time_cases(host, cases, runs)
