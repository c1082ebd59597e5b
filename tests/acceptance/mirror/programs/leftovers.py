"""`leftovers.py NAME` prints, as a JSON list, what there is on this node of the device of mirror NAME."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path


def loops(image: str) -> dict[str, str]:
    """Loop device -> its file, as this node sees it.

    The kernel tells of the loop devices of all nodes. The file of another node's lies below that node's root.
    """
    found = {}
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            file = path.read_text(encoding="utf-8").strip()
        except OSError:  # it went just now
            continue
        if file.endswith(image) and not file.startswith("/run/lab/nodes/"):
            found[f"/dev/{path.parts[3]}"] = file
    return found


def processes(words: tuple[str, ...]) -> Iterator[str]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            state = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX" and any(word in command for word in words) and "leftovers.py" not in command:
            yield f"process {entry.name}: {command}"


def main() -> None:
    name = sys.argv[1]
    link, runtime = Path(f"/dev/mirrorha/{name}"), Path(f"/run/mirrorha/mirror/{name}")
    found = [f"link {path}" for path in (link / "0", link) if path.is_symlink() or path.exists()]
    ours = loops(f"dev!mirrorha!{name}!0")
    found += [f"loop {device}: {file}" for device, file in ours.items()]
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        words = line.split()
        source = words[words.index("-") + 2]
        if words[4].startswith(str(runtime)) or source in ours or source.startswith(f"{link}/"):
            found.append(f"mount {words[4]} of {source}")
    found += [f"socket {path}" for path in runtime.glob("*.nbd")]
    found += processes((f"dev!mirrorha!{name}!0", f"{link}/0"))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
