"""What a worker imports: ask aircelld for a sandbox, get a handle. Synchronous, standard library only.

::

    with Client(DEFAULT_SOCKET).launch(request) as sandbox:
        sandbox.stdout.recv(4096)
        status = sandbox.wait(timeout=None)

Every descriptor made here is close-on-exec, and once a launch was accepted this process holds only its own ends.
"""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aircell import protocol
from aircell.autostart import connect_or_start
from aircell.errors import DaemonUnavailable, from_wire
from aircell.sandbox import Sandbox

DEFAULT_SOCKET = "/run/aircelld/aircelld.sock"
"""Where aircelld listens unless told otherwise."""
AUTOSTART_SECONDS = 60.0
"""Time for a new aircelld to listen; it may have to start its own containerd first."""
_BACKLOG_PAUSE = 0.01
"""A unix socket with a full backlog answers EAGAIN at once, see connect(2)."""

__all__ = ["DEFAULT_SOCKET", "Client", "Sandbox"]


class Client:
    """Speaks to one aircelld. Keeps no connection, so it may be used before and after a fork.

    ``autostart`` is the command that starts aircelld when nobody listens; None starts nothing. ``timeout`` bounds, in
    seconds, connecting and the first answer. Every method may raise DaemonUnavailable.
    """

    def __init__(self, socket_path: str, *, autostart: Sequence[str] | None = None, timeout: float = 10.0) -> None:
        self.socket_path = socket_path
        self.autostart = autostart
        self.timeout = timeout

    def call(self, op: str, fds: Sequence[int] = (), **fields: Any) -> Generator[dict[str, Any], None, None]:
        """The answers to one request of ``docs/protocol.md``, as they come. Raises the error that an answer holds.

        ``fds`` are passed along and stay the caller's.
        """
        with self._connect() as connection:
            reader = protocol.FrameReader()
            self._send(connection, {"op": op, **fields}, fds)
            yield self._first_answer(connection, reader)
            connection.settimeout(None)
            while (frame := protocol.receive(connection, reader)) is not None:
                yield _checked(frame[0])

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """The first answer to a request, which is the only one that most operations have."""
        with contextlib.closing(self.call(op, **fields)) as answers:
            return next(answers)

    def launch(self, request: Mapping[str, Any]) -> Sandbox:
        """Asks for a sandbox; returns as soon as aircelld accepts, before an image is pulled.

        ``request`` is a LaunchRequest as JSON data. Raises what the request was refused for; what goes wrong later
        is in the sandbox's ``error``.
        """
        connection = self._connect()
        ours, theirs = socket_pairs()
        try:
            reader = protocol.FrameReader()
            fds = [end.fileno() for end in theirs]
            self._send(connection, {"op": "launch", "request": request}, fds)
            _close(theirs)
            answer = self._first_answer(connection, reader)
        except BaseException:
            _close([connection, *ours, *theirs])
            raise
        return Sandbox(answer["sandbox"], ours, connection, reader)

    def _connect(self) -> socket.socket:
        try:
            return self._connect_once()
        except DaemonUnavailable as error:
            if self.autostart is None or not isinstance(error.__cause__, (FileNotFoundError, ConnectionRefusedError)):
                raise
        return connect_or_start(self._connect_once, self.socket_path, self.autostart, AUTOSTART_SECONDS)

    def _connect_once(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(self.timeout)
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                connection.connect(self.socket_path)
                return connection
            except OSError as error:
                if isinstance(error, BlockingIOError) and time.monotonic() < deadline:
                    time.sleep(_BACKLOG_PAUSE)
                    continue
                connection.close()
                raise _unavailable(self.socket_path, error) from error

    def _send(self, connection: socket.socket, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        try:
            protocol.send(connection, message, fds)
        except OSError as error:
            raise self._broken(error) from error

    def _first_answer(self, connection: socket.socket, reader: protocol.FrameReader) -> dict[str, Any]:
        try:
            frame = protocol.receive(connection, reader)
        except OSError as error:
            raise self._broken(error) from error
        if frame is None:
            raise self._broken(None)
        return _checked(frame[0])

    def _broken(self, error: OSError | None) -> DaemonUnavailable:
        if isinstance(error, TimeoutError):
            what = f"aircelld took a request on {self.socket_path} but did not answer within {self.timeout:g} s."
        else:
            what = f"aircelld hung up on {self.socket_path} before it answered."
        return DaemonUnavailable(what, hint="Look at aircelld's log; it may be restarting or overloaded.")


def socket_pairs() -> tuple[list[socket.socket], list[socket.socket]]:
    """Our ends and theirs, in the order of ``protocol.CHANNELS``; the lifeline keeps packets apart."""
    ours, theirs = [], []
    for name in protocol.CHANNELS:
        kind = socket.SOCK_SEQPACKET if name == "lifeline" else socket.SOCK_STREAM
        our_end, their_end = socket.socketpair(socket.AF_UNIX, kind)
        ours.append(our_end)
        theirs.append(their_end)
    return ours, theirs


def _close(sockets: Sequence[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise from_wire(answer["error"])
    return answer


def _unavailable(path: str, error: OSError) -> DaemonUnavailable:
    if isinstance(error, FileNotFoundError):
        what = f"There is no aircelld socket at {path}."
        hint = "Start `aircelld`, or give the path that it listens on."
    elif isinstance(error, ConnectionRefusedError):
        what = f"Nobody listens on {path}: aircelld has ended."
        hint = "Start `aircelld` again; its log says why it ended."
    elif isinstance(error, PermissionError):
        what = f"User {os.getuid()} may not open {path}."
        hint = f"Add the user to group {_group(path)} and log in again, or change `group` in aircelld's configuration."
    elif isinstance(error, (TimeoutError, BlockingIOError)):
        what = f"aircelld does not accept connections on {path}."
        hint = "It hangs or is overloaded; look at its log."
    else:
        what = f"aircelld cannot be reached at {path}: {error}."
        hint = "Give the path of a unix socket of at most 107 bytes."
    return DaemonUnavailable(what, hint=hint)


def _group(path: str) -> str:
    with contextlib.suppress(OSError, KeyError):
        return grp.getgrgid(Path(path).stat().st_gid).gr_name
    return "that owns the socket's folder"
