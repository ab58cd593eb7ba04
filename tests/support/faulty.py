"""A door in front of a real registry that fails as networks, proxies and registries do."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

Fault = Literal["stalls", "dies", "corrupts", "busy", "hangs"]

_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass
class Door:
    """Passes each connection on to ``registry``, until a fault happens to it.

    ``stalls``, ``dies`` and ``corrupts`` happen once ``after`` bytes of answers have passed on one connection: nothing
    comes any more, the door is closed for good, or a byte is another. ``hangs``: a connection that is never answered.
    ``busy``: the first request of a connection is answered with 503.
    """

    registry: str
    fault: Fault
    after: int = 100_000
    mended: bool = False
    """Faults happen to no connection more."""
    host: str = ""
    closed: threading.Event = field(default_factory=threading.Event)
    _listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    def reference(self, name: str) -> str:
        return f"{self.host}/{name}:latest"

    def open(self) -> None:
        """Lets in whoever comes, until it is closed."""
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._let_in, daemon=True).start()

    def close(self) -> None:
        """Idempotent; ends a connection that stalls, too."""
        self.closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _let_in(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        """One connection, to its end."""
        with client, contextlib.suppress(OSError):
            first = client.recv(65536)
            strikes = not self.mended and first[:1] in (b"G", b"H")  # a TLS greeting is somebody who only tries
            if strikes and self.fault == "busy":
                client.sendall(_BUSY)
                return
            if strikes and self.fault == "hangs":
                self.closed.wait()
                return
            host, _, port = self.registry.partition(":")
            with socket.create_connection((host, int(port))) as registry:
                registry.sendall(first)
                threading.Thread(target=_pass, args=(client, registry, bytes), daemon=True).start()
                _pass(registry, client, self.strike(client) if strikes else bytes)

    def strike(self, client: socket.socket) -> Callable[[bytes], bytes]:
        """What becomes of the bytes that come from the registry."""
        passed = 0

        def change(data: bytes) -> bytes:
            nonlocal passed
            before, passed = passed, passed + len(data)
            if passed <= self.after or (self.fault == "corrupts" and before > self.after):
                return data
            if self.fault == "stalls":
                self.closed.wait()
            elif self.fault == "dies":
                self.close()
                client.shutdown(socket.SHUT_RDWR)
            return data[:-1] + bytes([data[-1] ^ 1])

        return change


def _pass(source: socket.socket, target: socket.socket, change: Callable[[bytes], bytes]) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(change(data))
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def door(registry: str, fault: Fault) -> Iterator[Door]:
    """The door, open for as long as the context lasts."""
    made = Door(registry, fault)
    made.open()
    try:
        yield made
    finally:
        made.close()
