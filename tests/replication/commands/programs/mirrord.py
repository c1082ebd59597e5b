"""A daemon that does what it is told: the real control socket and lock, and a script in place of a mirror.

    mirrord.py --script FILE RES [-c FILE] [--runtime-directory DIR]

The script is JSON: `status` as it is at first; `last_words` to die with at once; `answers`, for each verb a list of
replies ("never": none); `then`, for each verb statuses that come to pass after it. What is asked is written to
FILE.asked, a line each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from replication.control import RUNTIME_DIRECTORY, Exit, claim, control_path
from replication.control_server import ControlServer, Ticket
from replication.errors import Refusal


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--script", type=Path)
    parser.add_argument("resource")
    parser.add_argument("-c", "--config", type=Path)
    parser.add_argument("--runtime-directory", type=Path, default=RUNTIME_DIRECTORY)
    arguments = parser.parse_args()
    script = json.loads(arguments.script.read_text())
    asked = arguments.script.with_suffix(".asked")
    if words := script.get("last_words"):
        print(words, file=sys.stderr)
        return 3
    lock = claim(arguments.resource, arguments.runtime_directory)
    assert lock >= 0
    if "child" in script:
        subprocess.Popen(script["child"])
    status: dict[str, Any] = {**script["status"], "name": arguments.resource}
    posted: deque[tuple[str, dict[str, Any], Ticket]] = deque()
    server = ControlServer(
        control_path(arguments.resource, arguments.runtime_directory),
        lambda: status,
        lambda verb, given, ticket: posted.append((verb, given, ticket)),
        tick_s=0.1,
    )
    server.start()
    while True:
        server.check()
        time.sleep(0.005)
        if not posted:
            continue
        verb, given, ticket = posted.popleft()
        with asked.open("a") as file:
            file.write(json.dumps([verb, given]) + "\n")
        answer = script.get("answers", {}).get(verb, {})
        if answer == "never" or not ticket.begin():
            continue
        ticket(Refusal(**answer) if answer else {})
        if answer:
            continue
        for row in script.get("then", {}).get(verb, []):
            status = {**row, "name": arguments.resource}
            server.publish({"status": status})
        if verb == "down":
            server.close()
            return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
