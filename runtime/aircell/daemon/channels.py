"""The five descriptors of a job while aircelld holds them: from the request to the hand-over."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Sequence
from typing import NoReturn

from aircell.daemon.concurrency import readable
from aircell.daemon.record import Stopped
from aircell.errors import InvalidSpec
from aircell.protocol import CHANNELS
from aircell.status import ExitStatus

_ENDING = {signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGHUP, signal.SIGQUIT}


class Channels:
    """Owns the descriptors until it is closed."""

    def __init__(self, fds: Sequence[int]) -> None:
        """Takes over ``fds``, also when it raises InvalidSpec because they are not what a launch needs."""
        self.fds = list(fds)
        try:
            if len(fds) != len(CHANNELS):
                raise InvalidSpec(f"a launch needs {len(CHANNELS)} descriptors ({', '.join(CHANNELS)}), not {len(fds)}")
            self._lifeline = _seqpacket(os.dup(fds[CHANNELS.index("lifeline")]))
        except BaseException:
            _close(self.fds)
            raise

    def close(self) -> None:
        """Idempotent."""
        self._lifeline.close()
        fds, self.fds = self.fds, []
        _close(fds)

    async def interrupted(self) -> NoReturn:
        """Raises Stopped once the worker hangs up its end of the lifeline, or sends a signal that would end the job.

        There is no job yet that could get any other signal, so those are dropped.
        """
        while True:
            await readable(self._lifeline.fileno())
            try:
                packet = self._lifeline.recv(65536, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                packet = b""
            if not packet:
                raise Stopped(ExitStatus(reason="the worker went away before the job began"))
            number = _signal(packet)
            if number in _ENDING:
                raise Stopped(ExitStatus(signal=number, reason="stopped by its worker before the job began"))


def _seqpacket(fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        os.close(fd)
        raise InvalidSpec("the lifeline of a launch is not a socket") from error
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_SEQPACKET:
        sock.close()
        raise InvalidSpec("the lifeline of a launch is not a SOCK_SEQPACKET unix socket")
    return sock


def _signal(packet: bytes) -> int | None:
    try:
        message = json.loads(packet)
    except ValueError:
        return None
    number = message.get("signal") if isinstance(message, dict) else None
    return number if isinstance(number, int) else None


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
