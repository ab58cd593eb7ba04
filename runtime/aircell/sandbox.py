"""The worker's handle of one sandbox: its five sockets, and what is known of its end."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from collections.abc import Sequence
from typing import Any

from aircell.errors import AircellError, SandboxLost, from_wire
from aircell.protocol import FrameReader
from aircell.status import ExitStatus, State

PACKETS_AT_ONCE = 64
"""An agent sends a handful in its life; an image's own idea of one may send without end, and holds nobody up."""
SETTLE_SECONDS = 10.0
"""How long, after the agent is gone without a report, the engine's account of its end is waited for."""


class Sandbox:
    """A launched sandbox, from acceptance to its end.

    ``requests``, ``stdout``, ``stderr`` and ``logs`` are blocking stream sockets. ``lifeline`` and ``events`` do not
    block: put them in a selector and call ``read_lifeline`` and ``read_events`` when they are readable, or just
    ``wait``. Until the job starts ``facts`` is None; when it has ended ``exit`` is set; when it never ran, ``error``.
    """

    def __init__(self, id: str, channels: Sequence[socket.socket], events: socket.socket, reader: FrameReader) -> None:
        self.id = id
        self.requests, self.stdout, self.stderr, self.logs, self.lifeline = channels
        self.events = events
        for sock in (self.lifeline, events):
            sock.setblocking(False)
        self.exit: ExitStatus | None = None
        self.error: AircellError | None = None
        self.facts: dict[str, Any] | None = None
        """What the runner in the sandbox said about itself, once the job was handed over."""
        self._reader = reader
        self._open = {self.lifeline, events}
        self._lost_at: float | None = None
        self._engine_exit: ExitStatus | None = None
        self._handed_over = False

    @property
    def finished(self) -> bool:
        """Nothing more will become known: ``exit`` or ``error`` is set."""
        return self.exit is not None or self.error is not None

    @property
    def watched(self) -> frozenset[socket.socket]:
        """Which of ``lifeline`` and ``events`` may still have something to read; a selector wants no others."""
        return frozenset(self._open)

    def read_lifeline(self) -> list[dict[str, Any]]:
        """The agent's packets that have arrived, or the first of them when they are many. Never blocks."""
        packets: list[dict[str, Any]] = []
        for _ in range(PACKETS_AT_ONCE):
            if self.lifeline not in self._open:
                break
            try:
                packet = self.lifeline.recv(65536)
            except BlockingIOError:
                break
            except ConnectionResetError:
                packet = b""
            if not packet:
                self._open.discard(self.lifeline)
                self._lost_at = time.monotonic()
                break
            if (message := _checked(packet)) is not None:
                self._note_packet(message)
                packets.append(message)
        self._settle()
        return packets

    def read_events(self) -> list[dict[str, Any]]:
        """aircelld's launch events that have arrived. Never blocks."""
        events: list[dict[str, Any]] = []
        while self.events in self._open:
            try:
                if not self._reader.receive(self.events):
                    self._open.discard(self.events)
            except BlockingIOError:
                break
            except ConnectionResetError:
                self._open.discard(self.events)
        while (frame := self._reader.next()) is not None:
            events.append(frame[0])
            self._note_event(frame[0])
        self._settle()
        return events

    def signal(self, number: int) -> None:
        """Sends a signal to the job's process group; one that has ended gets none.

        A launch that has not come to its job is cancelled by a signal that ends processes.
        """
        if not self.finished:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.lifeline.send(json.dumps({"type": "signal", "signal": int(number)}).encode())

    def wait(self, timeout: float | None = None) -> ExitStatus:
        """Blocks until the job has ended. Raises ``error`` when it never ran, TimeoutError after ``timeout`` s."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self.read_lifeline()
            self.read_events()
            if self.error is not None:
                raise self.error
            if self.exit is not None:
                return self.exit
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"sandbox {self.id} still runs after {timeout:g} s")
            self.poll(left)

    def poll(self, timeout: float | None = None) -> None:
        """Blocks until there is something to read on ``lifeline`` or ``events``, at most ``timeout`` seconds."""
        limits = [timeout] if timeout is not None else []
        if self._lost_at is not None:
            limits.append(self._lost_at + SETTLE_SECONDS - time.monotonic())
        poll = select.poll()  # select() cannot take descriptors over 1023
        for sock in self._open:
            poll.register(sock, select.POLLIN)
        poll.poll(max(0.0, min(limits)) * 1000 if limits else None)

    def close(self) -> None:
        """Closes everything; a job that still runs is then ended by its agent. Idempotent."""
        self._reader.close()
        self._open.clear()
        for sock in (self.requests, self.stdout, self.stderr, self.logs, self.lifeline, self.events):
            sock.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _note_packet(self, packet: dict[str, Any]) -> None:
        self._handed_over = True
        if packet["type"] == "ready":
            self.facts = packet["facts"]
        elif packet["type"] == "exited" and self.exit is None:
            self.exit = ExitStatus.from_wire(packet["exit"])

    def _note_event(self, event: dict[str, Any]) -> None:
        state = event.get("event")
        if state == State.RUNNING:
            self._handed_over = True
        elif state == State.EXITED:
            self._engine_exit = ExitStatus.from_wire(event["exit"])
        elif state == State.FAILED and self.exit is None:
            self.error = from_wire({**event["error"], "sandbox": self.id})

    def _settle(self) -> None:
        """Takes the engine's account when the agent gave none, and decides what nobody will report any more."""
        if self.finished or self._lost_at is None:
            return
        if self._engine_exit is not None:
            self.exit = self._engine_exit
            return
        if self.events in self._open and time.monotonic() < self._lost_at + SETTLE_SECONDS:
            return
        if self._handed_over:
            self.exit = ExitStatus(
                reason="The sandbox was lost: its agent ended without a report, and so did aircelld."
            )
        else:
            self.error = SandboxLost(
                "aircelld went away before the job was started.", sandbox=self.id, hint="It never ran: try it again."
            )


def _checked(packet: bytes) -> dict[str, Any] | None:
    """A packet as the protocol has it, or None: it comes out of the sandbox, so it may be anything."""
    try:
        message = json.loads(packet)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict):
        return None
    kind = message.get("type")
    if kind == "ready":
        valid = isinstance(message.get("facts"), dict)
    elif kind == "exited":
        valid = _is_exit(message.get("exit"))
    else:
        valid = kind == "started"
    return message if valid else None


def _is_exit(data: object) -> bool:
    if not isinstance(data, dict):
        return False
    numbers = (data.get("code"), data.get("signal"))
    return all(number is None or type(number) is int for number in numbers) and isinstance(data.get("reason", ""), str)
