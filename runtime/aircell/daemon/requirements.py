"""Images with requirements: an image of an author's choice, and on top of it what pip adds to it.

pip runs in a sandbox of that image, held as every other: its policy, its user, its limits. What comes out of there is
one layer, so nothing of the node is mounted into it and nothing of the node's pip configuration is left in the image.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import tempfile
from collections import deque
from collections.abc import Callable, Collection, Sequence
from importlib import resources
from pathlib import Path
from socket import socket

from aircell import build_errors, pip_request
from aircell.backends.base import Backend
from aircell.client import socket_pairs
from aircell.daemon.channels import Channels
from aircell.daemon.owner import Owner
from aircell.daemon.record import Sandbox
from aircell.daemon.shared_work import SharedWork
from aircell.errors import BuildFailed, RefusedByPolicy
from aircell.installer import FOLDER
from aircell.policy import Policy
from aircell.protocol import CHANNELS
from aircell.spec import Job, LaunchRequest, SandboxSpec
from aircell.status import ExitStatus, ImageInfo

REPOSITORY = "localhost/aircell/requirements"
Launch = Callable[[LaunchRequest, Channels, Owner], Sandbox]
Progress = Callable[[str, str], None]
"""Gets the image's name and a line of what pip says."""

_PATHS = {"PYTHONPATH": FOLDER, "PATH": f"{FOLDER}/bin"}
_NOISE = "Requirement already satisfied"
_CHUNK = 2**20


def reference(base: ImageInfo, spec: SandboxSpec, policy: Policy) -> str:
    """What engines call the image that ``spec`` asks for: the same for the same content."""
    content = [base.id, spec.python, policy.requirements, *spec.requirements]
    digest = hashlib.sha256(json.dumps([_installer(), *content]).encode()).hexdigest()
    return f"{REPOSITORY}:{digest[:32]}"


def with_paths(spec: SandboxSpec) -> dict[str, str]:
    """The spec's environment, in which an author's own PYTHONPATH and PATH do not hide the requirements."""
    if not spec.requirements:
        return spec.env
    return {name: f"{_PATHS[name]}:{value}" if name in _PATHS else value for name, value in spec.env.items()}


def refuse_by_name(image: str) -> None:
    """Raises RefusedByPolicy for an image that is made here: its name would give whoever knows it an image of which
    nobody has asked whether he may use what is below, see ``rights.py``."""
    if image.startswith(REPOSITORY):
        raise RefusedByPolicy(
            f"image: {image} was made for requirements and cannot be named.",
            hint="Name the image below, with the same `requirements`.",
        )


class RequirementImages:
    """Belongs to one event loop. ``launch`` is the launcher's; layers lie in ``folder`` while they are made."""

    def __init__(self, policy: Policy, folder: Path, launch: Launch) -> None:
        self._policy = policy
        self._folder = folder
        self._launch = launch
        self._builds: SharedWork[str, ImageInfo] = SharedWork()

    async def ensure(self, backend: Backend, base: ImageInfo, spec: SandboxSpec, progress: Progress) -> ImageInfo:
        """The image with the requirements of ``spec`` on top of ``base``, the image that the spec names.

        It is built unless it is there; who wants the same meanwhile waits for the same build. Raises BuildFailed,
        BuildUnavailable, and what launching a sandbox raises.
        """
        name = reference(base, spec, self._policy)
        if found := await backend.image(name):
            return found
        progress(name, "")
        return await self._builds.join(
            (backend.name, name),
            lambda report: self._build(backend, base, spec, name, report),
            lambda line: progress(name, line),
        )

    async def _build(
        self, backend: Backend, base: ImageInfo, spec: SandboxSpec, name: str, report: Callable[[str], None]
    ) -> ImageInfo:
        wanted = await asyncio.to_thread(
            pip_request.request, spec.requirements, wheels_only=self._policy.requirements == "wheels"
        )
        request = LaunchRequest(
            backend=backend.name,
            spec=_of_the_build(spec),
            job=Job(kind="runner", runner=_installer(), args=wanted),
            role="build",
            labels={"requirements": name.rpartition(":")[2]},
        )
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix="layer-") as layer:
            await self._install(request, Path(layer.name), report)
            return await backend.add_layer(base, Path(layer.name), name, _PATHS)

    async def _install(self, request: LaunchRequest, layer: Path, report: Callable[[str], None]) -> None:
        """Runs pip in a sandbox and writes what it made to ``layer``."""
        ours, theirs = socket_pairs()
        named = dict(zip(CHANNELS, ours, strict=True))
        with contextlib.ExitStack() as open_sockets:
            for end in ours:  # closing them ends the sandbox, if it has not ended
                open_sockets.enter_context(end)
            sandbox = self._begin(request, Channels([end.detach() for end in theirs]))
            said: deque[str] = deque(maxlen=build_errors.TAIL * 5)
            await asyncio.gather(_save(named["stdout"], layer), _listen(named["stderr"], said, report))
            await sandbox.end()
        _check(sandbox, request.job.args["requirements"], said)

    def _begin(self, request: LaunchRequest, channels: Channels) -> Sandbox:
        try:
            return self._launch(request, channels, Owner.of(os.getpid(), os.getuid()))
        except BaseException:
            channels.close()
            raise


def _of_the_build(spec: SandboxSpec) -> SandboxSpec:
    """The sandbox in which pip runs: the one that is asked for, with a way to the index and nothing of the author's."""
    left_out = ("requirements", "preload", "env", "mounts", "devices", "labels", "annotations")
    fields = spec.model_dump(exclude={*left_out, "network"})
    return SandboxSpec(**fields, network="pod" if spec.network == "none" else spec.network)


def _check(sandbox: Sandbox, requirements: Sequence[str], said: Collection[str]) -> None:
    """Raises why it did not come to an image."""
    what = f"the image with the requirements {', '.join(requirements):.500}"
    if sandbox.error is not None:
        error = sandbox.error
        raise type(error)(f"{what} could not be built: {error.message}", hint=error.hint, detail=error.detail)
    exit = sandbox.exit or ExitStatus()
    if exit.reason:
        raise BuildFailed(f"{what} could not be built: {exit.reason}", detail="\n".join(said))
    if exit.code != 0:
        raise build_errors.translate(what, said)


def _installer() -> str:
    return resources.files("aircell").joinpath("installer.py").read_text()


async def _save(sock: socket, path: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=sock.dup())
    with contextlib.closing(writer), path.open("wb") as file:
        while data := await reader.read(_CHUNK):
            file.write(data)


async def _listen(sock: socket, said: deque[str], report: Callable[[str], None]) -> None:
    """Keeps the last lines in ``said``."""
    reader, writer = await asyncio.open_unix_connection(sock=sock.dup(), limit=_CHUNK)
    with contextlib.closing(writer):
        while line := await _line(reader):
            text = line.decode(errors="replace").rstrip()
            if text and not text.startswith(_NOISE):
                said.append(text)
                report(text)


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except ValueError:  # longer than the limit; what was buffered is gone
        return b"(a line too long to show)\n"
