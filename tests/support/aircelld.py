"""The far side of ``Client``: a socket on which a test answers as aircelld would, or as a broken one would."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aircell import protocol


class Peer:
    """One accepted connection and its request; also plays the agent, on the other ends of the channels."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        received = protocol.receive(connection)
        assert received is not None
        self.request, fds = received
        self.ends = dict(zip(protocol.CHANNELS, [socket.socket(fileno=fd) for fd in fds], strict=False))

    def say(self, **message: Any) -> None:
        protocol.send(self.connection, message)

    def packet(self, **message: Any) -> None:
        self.ends["lifeline"].send(json.dumps(message).encode())

    def end_job(self) -> None:
        """The agent is gone."""
        for end in self.ends.values():
            end.close()


def serve(path: Path, script: Callable[[Peer], None]) -> threading.Thread:
    """Answers one connection with ``script`` in a thread, and hangs up when it returns."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def run() -> None:
        with listener:
            connection, _ = listener.accept()
        with connection:
            peer = Peer(connection)
            script(peer)
            peer.end_job()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread
