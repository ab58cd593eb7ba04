"""Jobs for tests: what to ask for, a worker in a process of its own, and what came of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aircell.client import Sandbox
from aircell.spec import Job, LaunchRequest, Mount, SandboxSpec
from images.build import IMAGES
from tests.support.images import reference

WORKER = """
import json, sys, time
from aircell.client import Client
sandbox = Client(sys.argv[1]).launch(json.loads(sys.argv[2]))
print(sandbox.id, flush=True)
time.sleep(600)
"""


def request(
    *argv: str,
    image: str = "base",
    mounts: Sequence[Mapping[str, Any]] = (),
    mounts_of_author: Sequence[Mapping[str, Any]] = (),
    **spec: Any,
) -> dict[str, Any]:
    """A command in one of the test images, or in any other, as the client wants it. ``mounts`` are the worker's."""
    name = reference(image) if image in IMAGES else image
    return LaunchRequest(
        spec=SandboxSpec(image=name, mounts=_mounts(mounts_of_author), **spec),
        job=Job(kind="exec", argv=argv),
        mounts=_mounts(mounts),
        labels={"test": "1"},
    ).model_dump(mode="json")


def _mounts(wanted: Sequence[Mapping[str, Any]]) -> tuple[Mount, ...]:
    return tuple(Mount.model_validate(mount) for mount in wanted)


def slow_to_prepare() -> dict[str, Any]:
    """A task whose sandbox takes a second to be ready."""
    runner = "import time\ndef preload(): time.sleep(1)\ndef describe(): return {}\ndef run(*_): pass\n"
    job = Job(kind="runner", runner=runner)
    return {**request("true"), "role": "task", "job": job.model_dump(mode="json")}


def until(sandbox: Sandbox, said: str) -> None:
    """Returns once the job has said it on stdout."""
    heard = b""
    while said.encode() not in heard:
        data = sandbox.stdout.recv(4096)
        assert data, f"stdout ended after {heard!r}"
        heard += data


class Worker:
    """A process of its own that launches a sandbox and can be killed."""

    def __init__(self, socket: str, wanted: dict[str, Any]) -> None:
        argv = [sys.executable, "-c", WORKER, socket, json.dumps(wanted)]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.sandbox = self.process.stdout.readline().strip()

    def kill(self) -> None:
        assert self.process.stdout
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def text(sock: Any) -> str:
    """Everything that a stream of a sandbox has until its end of file."""
    sock.settimeout(30)
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts).decode()


def events(sandbox: Sandbox, seconds: float = 30.0) -> list[Mapping[str, Any]]:
    """Every launch event up to the last."""
    found: list[Mapping[str, Any]] = []
    deadline = time.monotonic() + seconds
    while not found or found[-1]["event"] not in ("exited", "failed"):
        assert time.monotonic() < deadline, f"no end of the events: {found}"
        found += sandbox.read_events()
        time.sleep(0.01)
    return found
