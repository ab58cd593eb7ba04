"""The gate: the socket on which a sandbox's agent reports for its job. See ``docs/protocol.md``, part 2.

What comes through it is the sandbox's word: bounded, checked, and never believed beyond that sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, ValidationError

from aircell.daemon.concurrency import never
from aircell.errors import AircellError, InvalidSpec, StartupFailed, UserError, from_wire
from aircell.protocol import AsyncConnection
from aircell.spec import Job
from aircell.status import ExitStatus

_MAX_TEXT = 8192
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_MAX_MODULE = 200
_MAX_MODULES = 32
_EXIT = TypeAdapter(ExitStatus)


_Text = Annotated[str, AfterValidator(lambda text: text[:_MAX_TEXT])]


class Report(BaseModel):
    """What an agent that is ready says of what it has imported."""

    preload_errors: Annotated[dict[_Text, _Text], Field(max_length=100)] = Field(default_factory=dict)
    """Why a module of ``preload`` was left out, by its name."""
    from_mounts: list[_Text] = Field(default_factory=list)
    """Some of the modules that come from a mounted folder, where they may change before there is a job."""
    spoiled: bool = False
    """A module that was learned has left threads, of which the one in ``preload_errors`` tells."""


class Gate:
    """The connection to one agent."""

    def __init__(self, connection: AsyncConnection | None) -> None:
        self._connection = connection
        self.report = Report()
        """Of an agent that is ready."""
        self.times: dict[str, float] = {}
        """When the agent had connected, and when it was ready, in seconds since the epoch."""
        self.imports: tuple[str, ...] = ()
        """Names of modules that its job was slow to import, once it has told how that ended."""

    async def ready(self) -> None:
        """Waits until the agent, which has connected, is ready.

        Raises the agent's own error, or StartupFailed when it does not keep to the protocol. When the agent just
        ends, this waits on, as ``connected`` does: whoever watches the container knows better how it ended.
        """
        frame = await self._receive("connected", "failed")
        if frame["type"] == "connected":
            frame = await self._receive("ready", "failed")
        if frame["type"] == "failed":
            raise _reported(frame)
        try:
            self.report = Report.model_validate(frame)
        except ValidationError as error:
            raise StartupFailed("the agent sent a report that is none.") from error
        self.times["ready"] = time.time()

    async def admit(self) -> None:
        """Tells a fork that it is where it belongs. When it has ended, :meth:`ready` waits on."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await self._agent.send({"type": "admitted"})

    async def fork(self, order: Mapping[str, Any], fds: Sequence[int]) -> None:
        """Asks a zygote for a fork. Raises StartupFailed when it has ended."""
        try:
            await self._agent.send({"type": "fork", **order}, fds)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise StartupFailed("the zygote has ended.", hint="Another takes its place; try it again.") from error

    def peer_pid(self) -> int:
        """The agent's pid on the node; 0 when it is in no PID namespace that aircelld can see into."""
        return self._agent.peer_credentials()[0]

    def peer_uid(self) -> int:
        """The agent's uid on the node."""
        return self._agent.peer_credentials()[1]

    def waits(self) -> bool:
        """Whether the agent, which was ready, lives and has nothing to say, as it must until it has its job."""
        try:
            self._agent.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        return False

    def watch(self, stirred: Callable[[], None]) -> None:
        """Has ``stirred`` called when the agent does not wait any more, see :meth:`waits`."""
        asyncio.get_running_loop().add_reader(self._agent.sock, stirred)

    def unwatch(self) -> None:
        """Idempotent."""
        asyncio.get_running_loop().remove_reader(self._agent.sock)

    async def hand_over(self, job: Job, stop_grace: float, fds: Sequence[int]) -> None:
        """Passes the job on; returns once the agent has it.

        Raises StartupFailed when the agent has ended, or does not answer as it should: then it has begun nothing.
        """
        message = {
            "type": "job",
            "kind": job.kind,
            "argv": job.argv,
            "args": job.args,
            "env": job.env,
            "stop_grace": stop_grace,
        }
        try:
            await self._agent.send(message, fds)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise _ended() from error
        if await self._frame("started") is None:
            raise _ended()

    async def exit(self) -> ExitStatus:
        """How the job ended, by the agent's report. Waits for ever when there is none."""
        try:
            frame = await self._receive("exited")
            exit = _EXIT.validate_python(frame.get("exit"))
            self.imports = _modules(frame.get("imports"))
        except (StartupFailed, ValidationError):
            await never()
        return dataclasses.replace(exit, reason=exit.reason[:_MAX_TEXT])

    def close(self) -> None:
        """Idempotent. An agent that has no job ends."""
        if self._connection:
            self._connection.close()

    @property
    def _agent(self) -> AsyncConnection:
        if self._connection is None:
            raise RuntimeError("no agent has connected to this gate")
        return self._connection

    async def _receive(self, *expected: str) -> dict[str, Any]:
        return await self._frame(*expected) or await never()

    async def _frame(self, *expected: str) -> dict[str, Any] | None:
        """The next one, or None when the agent has ended."""
        try:
            received = await self._agent.receive()
        except InvalidSpec as error:
            raise StartupFailed(f"the agent sent what is no message: {error.message}.") from error
        if received is None:
            return None
        frame, fds = received
        for fd in fds:
            os.close(fd)
        if frame.get("type") not in expected:
            raise StartupFailed(f"the agent sent {str(frame.get('type'))[:80]!r} instead of {' or '.join(expected)}.")
        return frame


class ListeningGate(Gate):
    """Listens from the moment it is made, for one agent; before a fork of a zygote its shell connects."""

    def __init__(self, path: Path) -> None:
        super().__init__(None)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._listener.bind(str(path))
            path.chmod(0o666)  # the sandbox's user must connect; on the node only root can reach the folder
            self._listener.listen(2)
        except BaseException:
            self._listener.close()
            raise

    async def shell(self) -> socket.socket:
        """Waits until a shell has connected: the leash."""
        sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        return sock

    async def connected(self) -> None:
        """Waits until the agent has connected: its interpreter runs, and it has imported nothing yet."""
        sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        self._connection = AsyncConnection(sock)
        self.times["connected"] = time.time()
        self._listener.close()

    def close(self) -> None:
        self._listener.close()
        super().close()


def _modules(told: object) -> tuple[str, ...]:
    """Those of the names that can be modules'."""
    names = told[:_MAX_MODULES] if isinstance(told, list) else ()
    return tuple(n for n in names if isinstance(n, str) and len(n) <= _MAX_MODULE and _MODULE.fullmatch(n))


def _ended() -> StartupFailed:
    return StartupFailed(
        "the sandbox ended just before it could take its job.",
        hint="Somebody or something on the node killed it; try it again.",
    )


def _reported(frame: Mapping[str, Any]) -> AircellError:
    """The agent's error; it may blame the image, and nothing else."""
    told = frame.get("error")
    error = from_wire({key: str(text)[:_MAX_TEXT] for key, text in told.items()} if isinstance(told, dict) else {})
    return error if isinstance(error, UserError) else StartupFailed(error.message, hint=error.hint, detail=error.detail)
