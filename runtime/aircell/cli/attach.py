"""Standard input, output, error and signals of this process, connected to a sandbox."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from aircell.cli import output
from aircell.sandbox import Sandbox
from aircell.status import ExitStatus, State

_FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_CHUNK = 65536


class Attached:
    """Connects them for as long as the sandbox runs; ``on_event`` sees every launch event."""

    def __init__(self, sandbox: Sandbox, on_event: Callable[[Mapping[str, Any]], None]) -> None:
        self._sandbox = sandbox
        self._on_event = on_event

    def run(self) -> ExitStatus:
        """Returns once the command has ended and its output is written. Raises why it never ran."""
        sandbox = self._sandbox
        sandbox.logs.close()
        before = {number: signal.signal(number, self._forward) for number in _FORWARDED}
        try:
            while sandbox.facts is None and not sandbox.finished:
                self._read()
            outputs = self._pump()  # only now, so that no progress line is in the way
            while not sandbox.finished:
                self._read()
            exit = sandbox.wait(0)
            for thread in outputs:
                thread.join()
            return exit
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pump(self) -> list[threading.Thread]:
        """Starts to copy; what is copied to the outputs ends with the sandbox, the input perhaps never."""
        threading.Thread(target=_feed, args=(0, self._sandbox.requests), daemon=True).start()
        streams = ((self._sandbox.stdout, 1), (self._sandbox.stderr, 2))
        outputs = [threading.Thread(target=_drain, args=each, daemon=True) for each in streams]
        for thread in outputs:
            thread.start()
        return outputs

    def _read(self) -> None:
        self._sandbox.poll()
        for event in self._sandbox.read_events():
            self._on_event(event)
        for packet in self._sandbox.read_lifeline():
            if packet["type"] == "ready":  # sooner than aircelld's own event
                self._on_event({"event": State.RUNNING.value, "at": time.time()})

    def _forward(self, number: int, _: FrameType | None) -> None:
        self._sandbox.signal(number)


def _feed(fd: int, sock: socket.socket) -> None:
    """Until end of file here, or until nobody reads there."""
    try:
        while data := _read_some(fd):
            sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
    except OSError:  # the command has ended, or has closed its input
        return


def _read_some(fd: int) -> bytes:
    try:
        return os.read(fd, _CHUNK)
    except OSError:  # there is no input: it is closed, or the terminal belongs to somebody else
        return b""


def _drain(sock: socket.socket, fd: int) -> None:
    """Until end of file there. When it cannot be written here, whoever writes there learns it as with any pipe."""
    while data := memoryview(_receive_some(sock)):
        try:
            while data:
                data = data[os.write(fd, data) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # it was closed meanwhile
                sock.shutdown(socket.SHUT_RD)
            if not isinstance(error, BrokenPipeError):
                output.note(f"the command's output cannot be written: {error.strerror}")
            return


def _receive_some(sock: socket.socket) -> bytes:
    try:
        return sock.recv(_CHUNK)
    except OSError:  # the launch has failed, of which another tells
        return b""
