"""A real agent, as PID 1 of a real PID namespace, and the ends of its conversations that others have in production.

The test plays aircelld (the gate) and the worker (the lifeline and the four streams).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import aircell.agent
from aircell import protocol

PYTHON = "/usr/bin/python3"
"""The distribution's interpreter: a stranger to this project's environment, as an image's is."""

RUNNER = """
def preload(): pass
def describe(): return {"runner": "test"}
def run(requests, stdout, stderr, logs, args):
    names = dict(globals(), **locals())
    exec(args["source"], names)
    return names.get("code")
"""
"""Runs ``args["source"]``, which sees the descriptors by name and may set ``code``."""


class Agent:
    """Starts the agent; ``run_dir`` becomes its /run/aircell."""

    def __init__(
        self,
        run_dir: Path,
        *,
        runner: str | None = RUNNER,
        preload: Sequence[str] = (),
        mounts: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        command: Sequence[str] = (PYTHON,),
        env: Mapping[str, str] | None = None,
    ) -> None:
        for name in ("agent.py", "import_clock.py"):
            shutil.copy(Path(aircell.agent.__file__).with_name(name), run_dir)
        told = {"preload": list(preload), "mounts": list(mounts), **(settings or {})}
        (run_dir / "agent.json").write_text(json.dumps(told))
        if runner is not None:
            (run_dir / "runner.py").write_text(runner)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(run_dir / "gate.sock"))
            (run_dir / "gate.sock").chmod(0o666)
            listener.listen()
            listener.settimeout(10)
            self.process = subprocess.Popen(
                ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *command, run_dir / "agent.py", run_dir],
                env={**os.environ, **(env or {})},
                stderr=subprocess.PIPE,
                text=True,
            )
            self.gate, _ = listener.accept()
        self.gate.settimeout(10)
        self._reader = protocol.FrameReader()

    def frame(self) -> dict[str, Any] | None:
        """The next frame on the gate; None at its end."""
        received = protocol.receive(self.gate, self._reader)
        return received[0] if received else None

    def ready(self) -> dict[str, Any]:
        connected, ready = self.frame(), self.frame()
        assert connected is not None
        assert connected["type"] == "connected"
        assert ready is not None
        return ready

    def host_pid(self) -> int:
        """The agent's pid outside, as the engine has it; SO_PEERCRED, unix(7)."""
        raw = self.gate.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int(struct.unpack("3i", raw)[0])

    def job(self, *, lifeline_buffer: int | None = None, **fields: Any) -> Worker:
        """Hands a job over, and plays its worker from then on."""
        worker = Worker()
        if lifeline_buffer is not None:
            worker.theirs[-1].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, lifeline_buffer)
        message = {"type": "job", "kind": "exec", "argv": [], "args": {}, "env": {}, "stop_grace": 5, **fields}
        protocol.send(self.gate, message, [end.fileno() for end in worker.theirs])
        for end in worker.theirs:
            end.close()
        return worker

    def run(self, source: str, **fields: Any) -> Worker:
        """Waits until the agent is ready and hands it a job for :data:`RUNNER`."""
        self.ready()
        return self.job(kind="runner", args={"source": source}, **fields)

    def execute(self, *argv: str, **fields: Any) -> Worker:
        """Waits until the agent is ready and hands it a command."""
        self.ready()
        return self.job(argv=argv, **fields)

    def end(self) -> tuple[int, str]:
        """The sandbox's exit code and what its container log would hold."""
        _, log = self.process.communicate(timeout=10)
        return self.process.returncode, log

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.gate.close()
        self.process.kill()
        self.process.communicate()


class Worker:
    """The worker's ends of the five sockets."""

    def __init__(self) -> None:
        pairs = [socket.socketpair() for _ in range(4)] + [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
        self.requests, self.stdout, self.stderr, self.logs, self.lifeline = (ours for ours, _ in pairs)
        self.theirs = [theirs for _, theirs in pairs]
        for ours, _ in pairs:
            ours.settimeout(10)

    def packet(self) -> dict[str, Any] | None:
        """The next packet on the lifeline; None at its end."""
        data = self.lifeline.recv(65536)
        return json.loads(data) if data else None

    def signal(self, number: int) -> None:
        self.lifeline.send(json.dumps({"type": "signal", "signal": int(number)}).encode())

    def until(self, text: str) -> None:
        """Waits until the job has said this on stdout."""
        heard = b""
        while text.encode() not in heard:
            data = self.stdout.recv(4096)
            assert data, f"stdout ended after {heard!r}"
            heard += data

    def exit(self) -> dict[str, Any]:
        """Reads the lifeline to its end: the exit that the agent reported."""
        packets = []
        while (packet := self.packet()) is not None:
            packets.append(packet)
        assert [packet["type"] for packet in packets][-1:] == ["exited"], packets
        return dict(packets[-1]["exit"])

    def output(self) -> str:
        """All of stdout, which ends when the last process that holds it does."""
        return read_all(self.stdout)

    def errors(self) -> str:
        """All of stderr."""
        return read_all(self.stderr)

    def close(self) -> None:
        for end in (self.requests, self.stdout, self.stderr, self.logs, self.lifeline, *self.theirs):
            end.close()


def read_all(sock: socket.socket) -> str:
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
    return data.decode()
