"""aircelld's socket: one request per connection, answered by :mod:`aircell.daemon.operations`."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import shutil
import socket
from pathlib import Path
from typing import NoReturn

from aircell.daemon.concurrency import end, race
from aircell.daemon.operations import Call, Operations
from aircell.deadlines import within
from aircell.errors import AircellError, DaemonUnavailable, InvalidSpec
from aircell.protocol import AsyncConnection

log = logging.getLogger(__name__)

REQUEST_TIMEOUT = 30.0
"""Seconds in which a client must have sent its request."""
_BACKLOG = 512
_LAST_ANSWERS = 0.2
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


class _HungUp(Exception):
    """The client closed its connection."""


class Server:
    """Listens, and serves each client in a task of its own."""

    def __init__(self, path: Path, group: str | None, operations: Operations) -> None:
        self._path = path
        self._group = group
        self._operations = operations
        self._listener: socket.socket | None = None
        self._clients: set[asyncio.Task[None]] = set()

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._clients)

    def listen(self) -> None:
        """Makes the socket. Raises DaemonUnavailable when another aircelld listens there, InvalidSpec for its group."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(self._path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        umask = os.umask(0o177)
        try:
            listener.bind(str(self._path))
        finally:
            os.umask(umask)
        if self._group:
            try:
                shutil.chown(self._path, group=self._group)
            except LookupError as error:
                raise InvalidSpec(f"socket_group: there is no group {self._group!r} on this node.") from error
        self._path.chmod(0o660)
        listener.listen(_BACKLOG)
        self._listener = listener

    async def serve(self) -> None:
        """Accepts clients until it is cancelled."""
        if self._listener is None:
            raise RuntimeError("listen() comes first")
        while True:
            try:
                sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            except OSError as error:
                if error.errno not in _OUT_OF_DESCRIPTORS:
                    raise
                log.error("no descriptor is left for a new client; waiting for others to leave")
                await asyncio.sleep(0.2)
                continue
            task = asyncio.create_task(self._serve_client(AsyncConnection(sock)))
            self._clients.add(task)
            task.add_done_callback(self._clients.discard)

    async def close(self) -> None:
        """Stops listening, and hangs up on every client that has not had its last answer after a moment."""
        if self._listener:
            self._listener.close()
            self._path.unlink(missing_ok=True)
        if self._clients:
            await asyncio.wait(self._clients, timeout=_LAST_ANSWERS)
        await end(*self._clients)

    async def _serve_client(self, connection: AsyncConnection) -> None:
        try:
            await self._answer(connection)
        except (BrokenPipeError, ConnectionResetError, _HungUp):
            log.debug("a client hung up")
        finally:
            connection.close()

    async def _answer(self, connection: AsyncConnection) -> None:
        try:
            call = await _request(connection)
            if call is None:
                return
            try:
                await race(self._operate(connection, call), _hang_up(connection))
            finally:
                for fd in call.fds:
                    os.close(fd)
        except AircellError as error:
            log.info("answered with an error: %s", error)
            await connection.send({"error": error.to_wire()})
        except (BrokenPipeError, ConnectionResetError, _HungUp):
            raise
        except Exception:
            log.exception("a request failed")
            failure = AircellError("aircelld failed to serve the request.", hint="Its log has the traceback.")
            await connection.send({"error": failure.to_wire()})

    async def _operate(self, connection: AsyncConnection, call: Call) -> None:
        name = call.message.get("op")
        log.log(_level(name), "%s from pid %d, uid %d", name, call.pid, call.uid)
        async with contextlib.aclosing(self._operations.named(name)(call)) as answers:
            async for answer in answers:
                await connection.send(answer)


async def _request(connection: AsyncConnection) -> Call | None:
    try:
        frame = await within(REQUEST_TIMEOUT, connection.receive())
    except asyncio.TimeoutError as error:
        raise InvalidSpec(f"no request came within {REQUEST_TIMEOUT:g} s.") from error
    if frame is None:
        return None
    pid, uid, _ = connection.peer_credentials()
    return Call(*frame, pid=pid, uid=uid)


async def _hang_up(connection: AsyncConnection) -> NoReturn:
    """Raises once the client has hung up, or sends more than its one request."""
    frame = await connection.receive()
    if frame is None:
        raise _HungUp
    for fd in frame[1]:
        os.close(fd)
    raise InvalidSpec("a connection carries one request.")


def _level(operation: object) -> int:
    return logging.DEBUG if operation in ("hello", "ps", "inspect", "images") else logging.INFO


def _remove_stale(path: Path) -> None:
    """Removes a socket on which nobody listens any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            path.unlink()
            return
    raise DaemonUnavailable(
        f"another aircelld listens on {path}.", hint="Use that one, or give this one another `socket_path`."
    )
