"""`make bench`: prints the table and writes build/bench.json. Ends with 1 when a bar is missed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from agents import install
from tests.bench import mirror
from tests.bench.agents import application, virtual_ip
from tests.bench.rows import table

REPORT = Path(__file__).resolve().parents[2] / "build" / "bench.json"


def main() -> None:
    with TemporaryDirectory(prefix="mirrorha-bench-") as directory:
        root = Path(directory)
        install.install(root, dry_run=False)
        rows = [*virtual_ip(root), *application(root)]
    with TemporaryDirectory(prefix="mirrorha-bench-", dir=mirror.WORKPLACE) as directory:
        rows += mirror.rows(Path(directory))
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps([one.as_json() for one in rows], indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    missed = [one.case for one in rows if not one.holds]
    if missed:
        sys.exit(f"bench: the bar was missed by {', '.join(missed)}; is something else running on this machine?")


if __name__ == "__main__":
    main()
