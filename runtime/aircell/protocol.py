"""Frames and descriptors on aircelld's socket and on a sandbox's gate. Standard library only.

A frame is a 4-byte big-endian length and that many bytes of one JSON object, on a unix stream socket. Descriptors
(SCM_RIGHTS, see unix(7)) travel with the first byte of the frame they belong to. A frame is at most 16 MiB.

The verbs, states and events that the frames carry are listed in ``docs/protocol.md``.
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from aircell.errors import InvalidSpec

MAX_FRAME = 16 * 2**20
MAX_FDS = 16
_HEADER = struct.Struct(">I")
_CREDENTIALS = struct.Struct("3i")

CHANNELS = ("requests", "stdout", "stderr", "logs", "lifeline")
"""The five descriptors of a job, in the order in which they are passed."""


def encode(message: Mapping[str, Any]) -> bytes:
    """One frame. Raises InvalidSpec when it would be too large."""
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_FRAME:
        raise InvalidSpec(f"a message of {len(body)} bytes is over the limit of {MAX_FRAME}")
    return _HEADER.pack(len(body)) + body


def send(sock: socket.socket, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
    """Sends one frame on a blocking socket."""
    data = encode(message)
    sent = socket.send_fds(sock, [data], list(fds)) if fds else sock.send(data)
    if sent < len(data):
        sock.sendall(data[sent:])


class FrameReader:
    """Puts frames together from whatever arrives, for blocking and non-blocking sockets alike."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._fds: list[int] = []

    def receive(self, sock: socket.socket) -> bool:
        """One recvmsg. False at end of file. BlockingIOError passes through."""
        data, fds = _recv(sock)
        self._data += data
        self._fds += fds
        return bool(data)

    def next(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next whole frame with the descriptors received so far, or None. Raises InvalidSpec for garbage."""
        if len(self._data) < _HEADER.size:
            return None
        (length,) = _HEADER.unpack_from(self._data)
        if length > MAX_FRAME:
            raise InvalidSpec(f"a frame of {length} bytes is over the limit of {MAX_FRAME}")
        end = _HEADER.size + length
        if len(self._data) < end:
            return None
        body = bytes(self._data[_HEADER.size : end])
        del self._data[:end]
        fds, self._fds = self._fds, []
        try:
            message = json.loads(body)
        except ValueError as error:
            _close_all(fds)
            raise InvalidSpec("a frame is not JSON") from error
        if not isinstance(message, dict):
            _close_all(fds)
            raise InvalidSpec("a frame is not a JSON object")
        return message, fds

    def close(self) -> None:
        """Closes descriptors that no frame claimed."""
        _close_all(self._fds)
        self._fds = []


def receive(sock: socket.socket, reader: FrameReader | None = None) -> tuple[dict[str, Any], list[int]] | None:
    """The next frame from a blocking socket (its timeout holds), or None at end of file."""
    reader = reader or FrameReader()
    while (frame := reader.next()) is None:
        if not reader.receive(sock):
            reader.close()
            return None
    return frame


class AsyncConnection:
    """Frames over a non-blocking unix socket in an asyncio loop (whose own streams cannot carry descriptors)."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._reader = FrameReader()
        self._write_lock = asyncio.Lock()

    async def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next frame, or None at end of file or reset."""
        while (frame := self._reader.next()) is None:
            try:
                if not self._reader.receive(self.sock):
                    return None
            except BlockingIOError:
                await self._ready(read=True)
            except ConnectionResetError:
                return None
        return frame

    async def send(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Sends one frame. Raises BrokenPipeError or ConnectionResetError when nobody reads, or this side is closed."""
        data = memoryview(encode(message))
        async with self._write_lock:
            pending = list(fds)
            while data:
                if self.sock.fileno() < 0:
                    raise BrokenPipeError("closed on this side")
                try:
                    sent = socket.send_fds(self.sock, [data], pending) if pending else self.sock.send(data)
                except BlockingIOError:
                    await self._ready(read=False)
                    continue
                pending = []
                data = data[sent:]

    async def _ready(self, *, read: bool) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        add, remove = (loop.add_reader, loop.remove_reader) if read else (loop.add_writer, loop.remove_writer)
        fd = self.sock.fileno()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        add(fd, wake)
        try:
            await ready
        finally:
            remove(fd)

    def peer_credentials(self) -> tuple[int, int, int]:
        """(pid, uid, gid) of the other side when it connected; SO_PEERCRED, unix(7)."""
        raw = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, gid = _CREDENTIALS.unpack(raw)
        return pid, uid, gid

    def close(self) -> None:
        self._reader.close()
        self.sock.close()


def _recv(sock: socket.socket) -> tuple[bytes, list[int]]:
    fds = array.array("i")
    data, ancillary, flags, _ = sock.recvmsg(65536, socket.CMSG_SPACE(MAX_FDS * fds.itemsize), socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if flags & socket.MSG_CTRUNC:
        _close_all(list(fds))
        raise InvalidSpec(f"more than {MAX_FDS} descriptors came at once")
    return data, list(fds)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
