"""Frames and descriptors, over real socket pairs."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from aircell import protocol
from aircell.errors import InvalidSpec


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def _open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_frame_and_its_descriptors_arrive_together() -> None:
    ours, theirs = _pair()
    read, write = os.pipe()
    with ours, theirs:
        protocol.send(ours, {"a": "ü"}, [write])
        os.close(write)
        frame = protocol.receive(theirs)
        assert frame is not None
        message, fds = frame
        os.write(fds[0], b"through")
        os.close(fds[0])
        assert message == {"a": "ü"}
        assert os.read(read, 10) == b"through"
        assert not os.get_inheritable(read)
    os.close(read)


def test_two_frames_in_one_segment_stay_two() -> None:
    ours, theirs = _pair()
    with ours, theirs:
        ours.sendall(protocol.encode({"n": 1}) + protocol.encode({"n": 2}))
        reader = protocol.FrameReader()
        assert [protocol.receive(theirs, reader), protocol.receive(theirs, reader)] == [({"n": 1}, []), ({"n": 2}, [])]


def test_a_large_frame_crosses_a_small_buffer_with_its_descriptor() -> None:
    async def run() -> None:
        ours, theirs = (protocol.AsyncConnection(sock) for sock in _pair())
        text = "x" * 3_000_000
        read, write = os.pipe()
        frame, _ = await asyncio.gather(theirs.receive(), ours.send({"text": text}, [write]))
        assert frame is not None
        assert frame[0] == {"text": text}
        assert len(frame[1]) == 1
        for fd in (read, write, *frame[1]):
            os.close(fd)
        ours.close()
        assert await theirs.receive() is None
        theirs.close()

    asyncio.run(run())


@pytest.mark.parametrize("garbage", [b"\x00\x00\x00\x02{]", b"\x00\x00\x00\x02[]", b"\xff\xff\xff\xff"])
def test_garbage_is_refused_and_leaks_no_descriptor(garbage: bytes) -> None:
    before = _open_fds()
    ours, theirs = _pair()
    with ours, theirs, closing(protocol.FrameReader()) as reader:
        read, write = os.pipe()
        socket.send_fds(ours, [garbage], [read])
        os.close(read)
        os.close(write)
        with pytest.raises(InvalidSpec):
            protocol.receive(theirs, reader)
    assert _open_fds() == before


def test_a_message_over_the_limit_is_not_sent() -> None:
    with pytest.raises(InvalidSpec, match="over the limit"):
        protocol.encode({"text": "x" * protocol.MAX_FRAME})


def test_peer_credentials() -> None:
    ours, theirs = _pair()
    connection = protocol.AsyncConnection(ours)
    assert connection.peer_credentials() == (os.getpid(), os.getuid(), os.getgid())
    connection.close()
    theirs.close()
