"""The application of the acceptance tests: an HTTP server that answers with its host's name and can be made to hang.

`greeter.py ADDRESS PORT`. GET / answers "<host> <process id>". GET /hang makes every later request wait for ever.
"""

from __future__ import annotations

import http.server
import os
import socket
import socketserver
import sys
import threading


class Greeter(http.server.BaseHTTPRequestHandler):
    hanging = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/hang":
            self.hanging.set()
        elif self.hanging.is_set():
            threading.Event().wait()
        body = f"{socket.gethostname()} {os.getpid()}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: twenty requests a second."""


class Server(socketserver.ThreadingTCPServer):
    """Not http.server's own: that one asks a name server for this host's name before it serves."""

    allow_reuse_address = True
    daemon_threads = True


def main() -> None:
    Server((sys.argv[1], int(sys.argv[2])), Greeter).serve_forever()


if __name__ == "__main__":
    main()
