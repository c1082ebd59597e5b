"""PostgreSQL that commits a row at a time: `postgres_writer.py write DIRECTORY` and `... check DIRECTORY LAST`.

`write` makes a cluster in DIRECTORY, starts its server, and prints the number of each row, counted from 1, once its
commit has returned. `check` starts the server anew, so that it recovers from its log, and wants each row up to LAST to
be there; then it stops the server and has the checksum of each page verified. It prints how many rows there are, and
ends with 1 when something is wrong.

The server has next to no memory and checkpoints all the time, so that pages reach the disk and not the log alone.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

FINDINGS_MAX = 20
BINARIES = Path("/usr/lib/postgresql/15/bin")
SOCKETS = "/run/mirror-postgres"
SETTINGS = {
    "listen_addresses": "",
    "unix_socket_directories": SOCKETS,
    "shared_buffers": "512kB",
    "max_connections": "8",
    "min_wal_size": "2MB",
    "max_wal_size": "4MB",
    "checkpoint_timeout": "30s",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "autovacuum": "off",
}
PSQL = ["psql", "-X", "-q", "-A", "-t", "-h", SOCKETS, "-d", "postgres", "-v", "ON_ERROR_STOP=1"]
CONTENT = "repeat(md5(number::text), (1 + number % 60)::int)"


def run(argv: list[str]) -> str:
    """One of the server's programs. Ends this one when it fails."""
    result = subprocess.run(as_postgres(argv), cwd="/", text=True, capture_output=True, check=False)
    if result.returncode != 0:
        sys.exit(f"{' '.join(argv)}: exit {result.returncode}: {result.stdout}{result.stderr}")
    return result.stdout


def as_postgres(argv: list[str]) -> list[str]:
    """The server refuses to run as root."""
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", str(BINARIES / argv[0]), *argv[1:]]


def start(directory: Path) -> None:
    os.makedirs(SOCKETS, exist_ok=True)
    shutil.chown(SOCKETS, "postgres", "postgres")
    (directory / "postmaster.pid").unlink(missing_ok=True)  # of a server that lost its power; its pid may live again
    command = as_postgres(["pg_ctl", "start", "-w", "-t", "60", "-D", str(directory), "-l", f"{SOCKETS}/log"])
    server = subprocess.run(command, cwd="/", stdout=subprocess.DEVNULL, check=False)
    if server.returncode != 0:
        sys.exit(f"the server does not start: {Path(SOCKETS, 'log').read_text(encoding='utf-8')[-2000:]}")


def write(directory: Path) -> None:
    directory.mkdir()
    shutil.chown(directory, "postgres", "postgres")
    run(
        [
            "initdb",
            "-D",
            str(directory),
            "--data-checksums",
            "--wal-segsize=1",
            "--no-sync",
            "--locale=C",
            "-A",
            "trust",
        ]
    )
    with (directory / "postgresql.conf").open("a", encoding="utf-8") as file:
        file.writelines(f"{key} = '{value}'\n" for key, value in SETTINGS.items())
    start(directory)
    query("CREATE TABLE record (number bigint PRIMARY KEY, content text NOT NULL)")
    subprocess.run(["sync", "-f", str(directory)], check=True)  # what initdb did not
    client = subprocess.Popen(as_postgres(PSQL), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/")
    assert client.stdin is not None
    assert client.stdout is not None
    for number in itertools.count(1):
        client.stdin.write(f"INSERT INTO record SELECT number, {CONTENT} FROM (SELECT {number} AS number) AS one;\n")
        client.stdin.write(f"\\echo {number}\n")
        client.stdin.flush()
        if client.stdout.readline().strip() != str(number):
            sys.exit(f"row {number} was not committed")
        print(number, flush=True)


def query(text: str) -> str:
    return run([*PSQL, "-c", text]).strip()


def check(directory: Path, last: int) -> list[str]:
    start(directory)
    print(query("SELECT count(*) FROM record"))
    missing = query(
        f"SELECT n FROM generate_series(1, {last}) AS n LEFT JOIN record ON number = n WHERE number IS NULL ORDER BY n"
    )
    other = query(f"SELECT number FROM record WHERE content <> {CONTENT} ORDER BY number")
    run(["pg_ctl", "stop", "-w", "-m", "fast", "-D", str(directory)])
    run(["pg_checksums", "--check", "-D", str(directory)])
    findings = [f"row {number} was acknowledged, and is not there" for number in missing.split()]
    return findings + [f"row {number} has another content" for number in other.split()]


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    sys.exit("\n".join(check(Path(sys.argv[2]), int(sys.argv[3]))[:FINDINGS_MAX]) or 0)
