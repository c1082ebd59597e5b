"""A client that never stops asking: `client.py ADDRESS PORT` prints one line per request.

"<asked at, monotonic s> <answered at> <answer>", or "<asked at> <given up at> -" when none came within the time-out.
Requests follow each other every 50 ms; one takes 300 ms at most.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time

INTERVAL_S, TIMEOUT_S = 0.05, 0.3


def ask(address: str, port: int) -> str:
    deadline = time.monotonic() + TIMEOUT_S
    with socket.create_connection((address, port), timeout=TIMEOUT_S) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while True:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            piece = connection.recv(4096)
            if not piece:
                break
            answer += piece
    return answer.partition(b"\r\n\r\n")[2].decode().strip()


def main() -> None:
    address, port, due = sys.argv[1], int(sys.argv[2]), time.monotonic()
    while True:
        asked, answer = time.monotonic(), ""
        with contextlib.suppress(OSError):
            answer = ask(address, port)
        print(f"{asked:.4f} {time.monotonic():.4f} {answer or '-'}", flush=True)
        due = max(due + INTERVAL_S, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    main()
