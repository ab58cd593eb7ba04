"""Reading what a sandbox sends, with bounds on what it can make the reader keep.

Airflow's readers trust their child: they set aside whatever length it announces, keep a line until it ends, and let
a message that is not what it should be end the process. The DAG processor has one loop for every file; a worker
shares its memory with the supervisors of other tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from socket import socket
from typing import Any

MAX_MESSAGE = 64 * 2**20
"""Bytes of one message; a result, which holds every DAG of a file, is one."""
MAX_LINE = 16 * 2**20
"""Bytes of one line of a task's output; its supervisor keeps a line until it ends."""
Reader = Callable[[Any], bool]
"""Takes from a socket what is there; False when it is done with it."""
_EXPECTED = (BlockingIOError, InterruptedError, BrokenPipeError, ConnectionResetError)
"""What the callers of readers deal with themselves."""


class TooMuch(Exception):
    """More came out of the sandbox than may."""


class MeteredSocket:
    """The reading half of a socket, for so many bytes."""

    def __init__(self, sock: socket, allowance: int) -> None:
        self._sock = sock
        self._left = allowance
        self._allowance = allowance

    def recv(self, size: int) -> bytes:
        data = self._sock.recv(size)
        self._count(data)
        return data

    def recv_into(self, buffer: Any) -> int:
        count = self._sock.recv_into(buffer)
        self._count(memoryview(buffer)[:count])
        return count

    def _count(self, data: bytes | memoryview) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise TooMuch(f"more than the {self._allowance} bytes that it may send")


class MeteredLines(MeteredSocket):
    """The same, with the allowance for each line."""

    def _count(self, data: bytes | memoryview) -> None:
        _, newline, rest = bytes(data).rpartition(b"\n")
        if newline:
            self._left = self._allowance
        self._left -= len(rest)
        if self._left < 0:
            raise TooMuch(f"a line of more than {self._allowance} bytes")


def messages(decode: Callable[[bytes], Any], handle: Callable[[Any], Any], refuse: Callable[[str], None]) -> Reader:
    """A reader of messages with a 4-byte length before each: decodes each and has it handled.

    It calls ``refuse`` with what is wrong, and is done, when one is over ``MAX_MESSAGE`` bytes, and when ``decode`` or
    ``handle`` fails.
    """
    buffer = bytearray()

    def guarded(sock: socket) -> bool:
        data = sock.recv(65536)
        buffer.extend(data)
        try:
            while (message := _next_message(buffer)) is not None:
                handle(decode(message))
        except TooMuch as error:
            refuse(str(error))
            return False
        except _EXPECTED:
            raise
        except Exception as error:  # whatever a parser made of a hostile message
            refuse(f"a message that is none ({type(error).__name__}: {error})")
            return False
        return bool(data)

    return guarded


def _next_message(buffer: bytearray) -> bytes | None:
    size = int.from_bytes(buffer[:4], "big")
    if size > MAX_MESSAGE:
        raise TooMuch(f"a message of {size} bytes, where {MAX_MESSAGE} is the limit")
    if len(buffer) < 4 + size:
        return None
    message = bytes(buffer[4 : 4 + size])
    del buffer[: 4 + size]
    return message


def output(sock: socket, read: Reader, allowance: int, dropped: Callable[[str], None]) -> Reader:
    """A reader that, when ``read`` fails or has had its allowance, says so once and throws the rest away."""
    return _bounded(sock, MeteredSocket(sock, allowance), read, dropped)


def lines(sock: socket, read: Reader, allowance: int, dropped: Callable[[str], None]) -> Reader:
    """The same, with the allowance for each line."""
    return _bounded(sock, MeteredLines(sock, allowance), read, dropped)


def _bounded(sock: socket, metered: MeteredSocket, read: Reader, dropped: Callable[[str], None]) -> Reader:
    dropping = False

    def guarded(_: Any) -> bool:
        nonlocal dropping
        if dropping:
            return bool(sock.recv(65536))
        try:
            return read(metered)
        except _EXPECTED:
            raise
        except Exception as error:
            dropping = True
            dropped(str(error) if isinstance(error, TooMuch) else f"a line that is none ({error!r:.200})")
        return True

    return guarded
