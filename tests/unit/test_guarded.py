"""One process reads what many sandboxes send, and survives each of them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from aircell_airflow import guarded


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def read_line(sock: Any) -> bool:
    data = sock.recv(64)
    if data == b"boom":
        raise KeyError("level")
    return bool(data)


def read_into(sock: Any) -> bool:
    return bool(sock.recv_into(bytearray(64)))


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def test_messages_are_put_together_and_handled_in_order(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    handled: list[bytes] = []
    read = guarded.messages(lambda body: body, handled.append, pytest.fail)
    for part in (b"\0\0", b"\0\x03a", b"bc" + frame(b"") + frame(b"de") + b"\0"):
        theirs.send(part)
        assert read(ours) is True
    theirs.close()
    assert read(ours) is False
    assert handled == [b"abc", b"", b"de"]


def test_a_message_that_is_too_long_is_refused_before_it_comes(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    refused: list[str] = []
    theirs.send(b"\xff\xff\xff\xff")
    assert guarded.messages(lambda body: body, pytest.fail, refused.append)(ours) is False
    assert refused == ["a message of 4294967295 bytes, where 67108864 is the limit"]


def test_a_message_that_a_parser_chokes_on_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    refused: list[str] = []
    theirs.send(frame(b"x"))
    assert guarded.messages(int, pytest.fail, refused.append)(ours) is False
    assert refused == ["a message that is none (ValueError: invalid literal for int() with base 10: b'x')"]


def test_nothing_to_read_is_left_to_the_caller(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    for read in (guarded.messages(bytes, bytes, pytest.fail), guarded.output(ours, read_line, 8, pytest.fail)):
        with pytest.raises(BlockingIOError):
            read(ours)


def test_output_within_the_allowance_passes_until_the_end(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    for reader in (read_line, read_into):
        theirs.send(b"1234")
        assert guarded.output(ours, reader, 4, pytest.fail)(ours) is True
    theirs.close()
    assert guarded.output(ours, read_line, 4, pytest.fail)(ours) is False


@pytest.mark.parametrize(("sent", "says"), [(b"123456789", "more than the 8 bytes"), (b"boom", "a line that is none")])
def test_output_is_dropped_with_one_remark(pair: tuple[socket.socket, socket.socket], sent: bytes, says: str) -> None:
    ours, theirs = pair
    dropped: list[str] = []
    read = guarded.output(ours, read_line, 8, dropped.append)
    theirs.send(sent)
    assert read(ours) is True
    theirs.send(b"more, which nobody reads")
    assert read(ours) is True
    theirs.close()
    assert read(ours) is False
    assert len(dropped) == 1
    assert says in dropped[0]


def test_a_line_has_an_allowance_of_its_own(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    dropped: list[str] = []
    read = guarded.lines(ours, read_into, 8, dropped.append)
    for part in (b"12345678\n", b"1234567\n12", b"345678"):
        theirs.send(part)
        assert read(ours) is True
    assert dropped == []
    theirs.send(b"9")
    assert read(ours) is True
    assert dropped == ["a line of more than 8 bytes"]


def test_a_sandbox_that_has_gone_sent_nothing_wrong(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair

    def handle(body: bytes) -> None:
        raise BrokenPipeError

    theirs.send(frame(b"x"))
    with pytest.raises(BrokenPipeError):
        guarded.messages(bytes, handle, pytest.fail)(ours)
