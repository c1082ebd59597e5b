"""SQLite that commits a row at a time: `sqlite_writer.py write FILE`, `sqlite_writer.py check FILE LAST`.

`write` prints the number of each row, counted from 1, once its commit has returned. `check` wants each row up to LAST
to be there as it was written, and the file to be sound; it prints how many rows there are. It ends with 1 otherwise.

Write-ahead log with synchronous=FULL: the mode in which SQLite promises that a commit outlives a loss of power. (With a
rollback journal a commit may be undone, since the journal's removal from its directory is not synced.)
"""

from __future__ import annotations

import hashlib
import itertools
import sqlite3
import sys

FINDINGS_MAX = 20
BUSY_TIMEOUT_S = 10.0


def content(number: int) -> bytes:
    """From one sector to a few pages, so that a commit is torn in the most different places."""
    digest = hashlib.sha256(str(number).encode()).digest()
    return digest * (1 + digest[0] * 2)


def connect(file: str) -> sqlite3.Connection:
    database = sqlite3.connect(file, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    return database


def write(file: str) -> None:
    database = connect(file)
    database.execute("CREATE TABLE IF NOT EXISTS record (number INTEGER PRIMARY KEY, content BLOB NOT NULL)")
    for number in itertools.count(1):
        database.execute("INSERT INTO record VALUES (?, ?)", (number, content(number)))
        print(number, flush=True)


def check(file: str, last: int) -> list[str]:
    database = connect(file)
    (soundness,) = database.execute("PRAGMA integrity_check").fetchone()
    findings = [] if soundness == "ok" else [f"integrity_check: {soundness}"]
    rows = dict(database.execute("SELECT number, content FROM record"))
    print(len(rows))
    findings += [
        f"row {number} was acknowledged, and is not there" for number in range(1, last + 1) if number not in rows
    ]
    return findings + [
        f"row {number} has another content" for number, value in rows.items() if value != content(number)
    ]


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(sys.argv[2])
    sys.exit("\n".join(check(sys.argv[2], int(sys.argv[3]))[:FINDINGS_MAX]) or 0)
