"""A launch that nobody waits for."""

from __future__ import annotations

import select
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from aircell.errors import DaemonUnavailable
from aircell.protocol import FrameReader
from aircell.sandbox import Sandbox
from aircell_airflow.launching import PendingLaunch
from aircell_airflow.sandboxed import SandboxTracker


def a_tracker() -> SandboxTracker:
    channels = [socket.socketpair()[0] for _ in range(5)]
    return SandboxTracker(Sandbox("id", channels, socket.socketpair()[0], FrameReader()), log=None)  # type: ignore[arg-type]


def readable(sock: socket.socket, seconds: float) -> bool:
    return bool(select.select([sock], [], [], seconds)[0])


def held_up(result: Callable[[], Any]) -> tuple[threading.Event, Callable[[], Any]]:
    gate = threading.Event()

    def launch() -> Any:
        assert gate.wait(10)
        return result()

    return gate, launch


def test_it_tells_when_it_is_done_and_hands_over_what_was_to_be_sent() -> None:
    tracker = a_tracker()
    gate, launch = held_up(lambda: tracker)
    pending = PendingLaunch(launch)
    assert not readable(pending.done, 0)
    with pytest.raises(TimeoutError):
        pending.wait(0)
    send = print
    pending.held.append(send)
    gate.set()
    assert readable(pending.done, 10)
    assert pending.take() is tracker
    assert tracker.held == [send]
    tracker.sandbox.close()


def test_what_the_launch_raises_is_raised_where_it_is_taken() -> None:
    gate, launch = held_up(lambda: (_ for _ in ()).throw(DaemonUnavailable("away")))
    pending = PendingLaunch(launch)
    gate.set()
    assert readable(pending.done, 10)
    with pytest.raises(DaemonUnavailable, match="away"):
        pending.take()


def test_a_signal_ends_it() -> None:
    gate, launch = held_up(a_tracker)
    pending = PendingLaunch(launch)
    pending.send_signal(signal.SIGKILL)
    assert pending.wait(0) == -signal.SIGKILL
    pending.abandon()
    gate.set()


@pytest.mark.parametrize("abandoned_first", [True, False])
def test_a_sandbox_that_nobody_takes_is_given_back(abandoned_first: bool) -> None:
    tracker = a_tracker()
    given_back = threading.Event()
    tracker.sandbox.close = given_back.set  # type: ignore[method-assign]
    gate, launch = held_up(lambda: tracker)
    pending = PendingLaunch(launch)
    if not abandoned_first:
        gate.set()
        assert readable(pending.done, 10)
    pending.abandon()
    gate.set()
    assert given_back.wait(10)
