"""The DAG processor's loop: when it looks up from what sandboxes say."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.manager import DagFileInfo

from aircell_airflow.processor_manager import SandboxedDagFileProcessorManager

ENOUGH = 20.0


@dataclass
class Processor:
    """As much of one as the loop asks for."""

    is_ready: bool = False
    awaited_image: str | None = None


@pytest.fixture
def manager() -> Iterator[SandboxedDagFileProcessorManager]:
    manager = SandboxedDagFileProcessorManager(max_runs=1)
    with selectors.DefaultSelector() as manager.selector:
        yield manager


def says(manager: SandboxedDagFileProcessorManager, heard: Callable[[bytes], Any], *words: bytes) -> None:
    """Puts words on a socket of the loop's, which come one by one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for word in words:
        theirs.send(word)

    def read(sock: socket.socket) -> bool:
        word = sock.recv(64)
        heard(word)
        return bool(word)

    manager.selector.register(ours, selectors.EVENT_READ, (read, manager.selector.unregister))
    theirs.close()


def file(name: str) -> DagFileInfo:
    return DagFileInfo(rel_path=Path(name), bundle_name="dags", bundle_path=Path("/dags"))


def serve(manager: SandboxedDagFileProcessorManager, timeout: float) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    manager._service_processor_sockets(timeout=timeout)
    return time.monotonic() - began


def test_it_listens_until_a_file_is_parsed(manager: SandboxedDagFileProcessorManager) -> None:
    processor = Processor()
    manager._processors[file("a.py")] = processor  # type: ignore[assignment]
    words: list[bytes] = []

    def heard(word: bytes) -> None:
        words.append(word)
        processor.is_ready = word == b"result"

    says(manager, heard, b"accepted", b"ready", b"result", b"more")
    assert serve(manager, ENOUGH) < ENOUGH / 2
    assert words == [b"accepted", b"ready", b"result"]


def test_it_looks_up_when_a_file_waits_for_an_image_and_when_none_does_any_more(
    manager: SandboxedDagFileProcessorManager,
) -> None:
    processor = Processor()
    manager._processors[file("a.py")] = processor  # type: ignore[assignment]
    says(manager, lambda word: setattr(processor, "awaited_image", word.decode() or None), b"image", b"")
    assert serve(manager, ENOUGH) < ENOUGH / 2
    assert processor.awaited_image == "image"
    manager._awaited["image"] = file("a.py"), manager._processors.pop(file("a.py"))
    assert serve(manager, ENOUGH) < ENOUGH / 2
    assert processor.awaited_image is None


@pytest.mark.parametrize("timeout", [0.0, 0.2])
def test_it_looks_up_when_time_is_up(manager: SandboxedDagFileProcessorManager, timeout: float) -> None:
    manager._processors[file("a.py")] = Processor()  # type: ignore[assignment]
    says(manager, lambda _: None, b"word")
    assert timeout <= serve(manager, timeout) < ENOUGH / 2
