"""A little TCP server that answers each connection with a secret and its clock, and the client's side of it."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """One answer of a service."""

    secret: str
    time: float
    """The server's clock, seconds since 1970."""
    sent: float
    received: float
    """This machine's clock when the question left and when the answer was there."""


class Service:
    """Answers on ``address`` (empty: on all) until the process ends. OSError when it cannot, as when the port is taken."""

    def __init__(self, address: str, port: int, secret: str, clock: Callable[[], float] = time.time) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                while self.request.recv(1):
                    self.request.sendall((json.dumps([secret, clock()]) + "\n").encode())

        both = not address and socket.has_dualstack_ipv6()

        class Server(socketserver.ThreadingTCPServer):
            address_family = socket.AF_INET6 if both or ":" in address else socket.AF_INET
            allow_reuse_address = True
            daemon_threads = True
            request_queue_size = 1024

            def server_bind(self) -> None:
                if both:
                    self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                super().server_bind()

        self._server = Server((address, port), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def ask(
    address: str, port: int, *, times: int = 1, seconds: float = 5.0, clock: Callable[[], float] = time.time
) -> list[Answer]:
    """Ask so many times over one connection. OSError when no process answers, or something that is not a service."""
    answers = []
    with socket.create_connection((address, port), timeout=seconds) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        file = connection.makefile("r")
        for _ in range(times):
            sent = clock()
            connection.sendall(b"?")
            line = file.readline()
            received = clock()
            try:
                secret, theirs = json.loads(line)
            except ValueError:
                raise OSError(f"another program answers there: {line[:40]!r}") from None
            answers.append(Answer(secret, theirs, sent, received))
    return answers
