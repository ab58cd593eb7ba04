"""An agent that an image brought itself may send packets without end; whoever reads them gets on nonetheless."""

from __future__ import annotations

import socket
import threading

from aircell.protocol import FrameReader
from aircell.sandbox import PACKETS_AT_ONCE, Sandbox


def test_reading_the_lifeline_ends_while_packets_keep_coming() -> None:
    ours, agent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channels = [*(socket.socketpair()[0] for _ in range(4)), ours]
    flood = threading.Thread(target=send_until_closed, args=(agent,))
    with Sandbox("id", channels, socket.socketpair()[0], FrameReader()) as sandbox:
        flood.start()
        for _ in range(20):
            assert len(sandbox.read_lifeline()) <= PACKETS_AT_ONCE
        assert sandbox.facts is None
    flood.join(10)
    assert not flood.is_alive()


def send_until_closed(agent: socket.socket) -> None:
    try:
        while True:
            agent.send(b'{"type": "started"}')
    except (BrokenPipeError, ConnectionResetError):  # as packets were left unread, or not
        agent.close()
