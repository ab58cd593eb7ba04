"""The CRI backend: sandboxes as pod sandboxes with one container, on containerd or any other CRI engine.

State is the engine's alone: sandboxes are found by the label that both the pod and its container carry.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO, ClassVar, TypeVar
from weakref import WeakValueDictionary

from pydantic import ValidationError

from aircell.backends import mounts
from aircell.backends.base import LABEL_SANDBOX, Backend, EngineInfo, PodPlan, PullProgress, RegistryAuth, SandboxPlan
from aircell.backends.cri import cgroups, engine, log_format, translate
from aircell.backends.cri.calls import Calls
from aircell.backends.cri.client import CriClient
from aircell.backends.cri.config import CriConfig
from aircell.backends.cri.image_files import ImageFiles
from aircell.backends.cri.process import ContainerProcess
from aircell.backends.cri.progress import watched
from aircell.deadlines import within
from aircell.errors import AircellError, EngineError, EngineUnavailable, InvalidSpec, NotFound, UnsupportedSpec
from aircell.spec import SandboxSpec
from aircell.status import ExitStatus, ImageInfo, SandboxInfo
from aircell_cri.v1 import api_pb2 as cri

logger = logging.getLogger(__name__)

T = TypeVar("T")

KUBELET_LABEL = "io.kubernetes.pod.uid"
SHM = "/dev/shm"  # noqa: S108 - the path inside the sandbox

_ENGINE_FACTS_SECONDS = 60.0
_SLOW_POLL = 1.0
_LOADED_POLL = 0.02
_PATIENCE = 60.0
"""Seconds for which wait() bears an engine that does not answer, such as one that is being restarted."""


class CriBackend(Backend):
    """See :class:`~aircell.backends.base.Backend`; its configuration is :class:`CriConfig`."""

    name: ClassVar[str] = "cri"

    def __init__(self, config: Mapping[str, object]) -> None:
        try:
            self._config = CriConfig.model_validate(config)
        except ValidationError as error:
            raise InvalidSpec(f"backends.cri of the configuration is malformed: {error}") from error
        self._client = CriClient(self._config.socket)
        self._calls = Calls(self._client, self._config)
        self._image_files = ImageFiles(self._config)
        self._engine: tuple[float, engine.Engine] | None = None
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By sandbox, for as long as somebody holds or wants one."""
        self._cgroup_root = Path(self._config.cgroup_root)
        self._node = engine.Node(
            cgroup_v2=cgroups.is_v2(self._cgroup_root),
            apparmor=Path("/sys/kernel/security/apparmor/profiles").exists(),
        )

    async def info(self) -> EngineInfo:
        facts = await self._read_engine()
        return EngineInfo(
            facts.name, facts.version, facts.api_version, tuple(sorted(facts.handlers)), facts.user_namespaces
        )

    async def close(self) -> None:
        await self._client.close()

    async def check(self, spec: SandboxSpec) -> None:
        await self._place(spec, "")

    async def _place(self, spec: SandboxSpec, sandbox: str) -> translate.Placement:
        placement = engine.place(spec, sandbox, await self._facts(), self._node, self._config)
        profile = translate.seccomp_file(spec.security)
        if profile and not await asyncio.to_thread(Path(profile).is_file):
            raise UnsupportedSpec(
                f"the seccomp profile {profile} does not exist on this node.",
                hint="Correct `security.seccomp`, or install the profile.",
                sandbox=sandbox,
            )
        return placement

    # --- Images ---

    async def image(self, reference: str) -> ImageInfo | None:
        image = await self._calls.image(reference)
        return translate.image_info(image, reference) if image is not None else None

    async def images(self) -> list[ImageInfo]:
        return [translate.image_info(image) for image in await self._calls.images()]

    async def pull(
        self, reference: str, auth: RegistryAuth | None, progress: Callable[[PullProgress], None]
    ) -> ImageInfo:
        pull = self._calls.pull(reference, translate.auth(auth))
        await watched(pull, self._client, self._config, reference, progress)
        image = await self.image(reference)
        if image is None:
            raise NotFound(f"the image {reference} was pulled and is gone again.", hint="Does something prune images?")
        return image

    async def load(self, archive: BinaryIO, reference: str) -> ImageInfo:
        await self._image_files.load(archive)
        return await self._loaded(reference)

    async def add_layer(self, base: ImageInfo, layer: Path, reference: str, paths: Mapping[str, str]) -> ImageInfo:
        await self._image_files.add_layer(base.id, layer, reference, paths)
        return await self._loaded(reference)

    async def remove_image(self, reference: str) -> None:
        await self._calls.remove_image(reference)

    async def image_folder(self) -> str:
        return await self._calls.image_folder()

    # --- The life of a sandbox ---

    async def prepare(self, plan: PodPlan) -> str:
        placement = await self._place(plan.spec, plan.id)
        async with self._alone(plan.id):
            return await self._run_pod(plan, placement)

    async def create(self, plan: SandboxPlan) -> None:
        if plan.spec.resources.shm is not None and all(mount.target != SHM for mount in plan.mounts):
            raise UnsupportedSpec(
                f"the CRI cannot bound {SHM}, and nothing bounded is mounted there.",
                hint="Leave out `resources.shm`.",
                sandbox=plan.id,
            )
        placement = await self._place(plan.spec, plan.id)
        plan = dataclasses.replace(plan, mounts=await asyncio.to_thread(mounts.prepare, plan.mounts, plan.id))
        async with self._alone(plan.id):
            await self._make(plan, placement)

    async def _make(self, plan: SandboxPlan, placement: translate.Placement) -> None:
        pod = await self._pod_for(plan, placement)
        try:
            if not self._node.cgroup_v2 and plan.spec.resources.pids is not None:
                cgroups.limit_pids(self._cgroup_root, placement.cgroup_parent, plan.spec.resources.pids)
            await self._calls.create_container(translate.create_container(plan, placement, pod), plan.spec, plan.id)
        except BaseException:
            if not plan.within:  # else nothing has been made, or there was one of that id before
                await self._clean_up(plan.id)
            raise

    async def _pod_for(self, plan: SandboxPlan, placement: translate.Placement) -> str:
        if plan.within:
            return await self._calls.pod(plan.within)
        if not plan.pod:
            return await self._run_pod(plan, placement)
        if not translate.pod_is_ready(await self._calls.pod_status(plan.pod, plan.id)):
            raise NotFound("the pod sandbox that was prepared has ended.", sandbox=plan.id)
        return plan.pod

    async def _run_pod(self, plan: PodPlan, placement: translate.Placement) -> str:
        return await self._calls.run_pod(translate.run_pod_sandbox(plan, placement), plan.id)

    async def start(self, sandbox: str) -> None:
        async with self._alone(sandbox):
            await self._calls.start_container(await self._calls.container(sandbox), sandbox)

    async def wait(self, sandbox: str) -> ExitStatus:
        container = await _patiently(lambda: self._calls.container(sandbox))
        oom_seen = seen_to_end = False
        for pause in _pauses():
            answer = await _patiently(partial(self._calls.status, container, sandbox, verbose=not seen_to_end))
            if answer.status.state == cri.CONTAINER_EXITED:
                return translate.exit_status(answer.status, oom_seen=oom_seen)
            process = ContainerProcess.open(translate.first_process(answer), container, self._cgroup_root)
            del answer  # it holds the whole OCI spec, and what follows lasts as long as the job
            if process is None:
                await asyncio.sleep(pause)
                continue
            with process:
                oom_seen = await process.ended()
                process.kill_rest()
            seen_to_end = True
        raise AssertionError("unreachable: there is always another pause")

    async def log_tail(self, sandbox: str, max_bytes: int = 8192) -> str:
        answer = await self._calls.status(await self._calls.container(sandbox), sandbox)
        return await asyncio.to_thread(log_format.tail, Path(answer.status.log_path), max_bytes)

    async def stop(self, sandbox: str, grace: float) -> None:
        for container in await self._calls.containers({LABEL_SANDBOX: sandbox}):
            await self._calls.stop_container(container.id, sandbox, math.ceil(grace))
        # The pod, in which nothing of ours runs now, is left to remove(): it may have begun already, because the end
        # of the container was seen, and containerd cannot stop one pod twice at a time.

    async def remove(self, sandbox: str) -> None:
        async with self._alone(sandbox):
            await self._remove(sandbox)
            self._calls.forget(sandbox)

    async def _remove(self, sandbox: str) -> None:
        parents = {f"{self._config.cgroup_parent}/{sandbox}"}
        pods = await self._calls.pods({LABEL_SANDBOX: sandbox})
        if not pods:
            parents |= await self._remove_shell(sandbox)
        for pod in pods:
            parents.add(await self._cgroup_parent(pod.id, sandbox))
            await self._calls.stop_pod(pod.id, sandbox)
            await self._calls.remove_pod(pod.id, sandbox)
        if not self._node.cgroup_v2:
            for parent in parents:
                if parent.endswith(f"/{sandbox}"):
                    await cgroups.remove_group(self._cgroup_root, parent)

    async def sandboxes(self, labels: Mapping[str, str]) -> list[SandboxInfo]:
        pods = [pod for pod in await self._calls.pods(labels) if LABEL_SANDBOX in pod.labels]
        containers = {each.labels.get(LABEL_SANDBOX): each for each in await self._calls.containers(labels)}
        whole = [await self._sandbox_info(pod, containers.pop(pod.labels[LABEL_SANDBOX], None)) for pod in pods]
        shells = [await self._sandbox_info(shell, shell) for name, shell in containers.items() if name]
        return [*whole, *shells]

    async def foreign_owner(self) -> str | None:
        foreign = translate.foreign_pods(await self._calls.pods({}), KUBELET_LABEL)
        if not foreign:
            return None
        return f"a kubelet (it has the pod {foreign[0].metadata.namespace}/{foreign[0].metadata.name} here)"

    # --- Helpers ---

    def _alone(self, sandbox: str) -> asyncio.Lock:
        """Held while a sandbox is made, started or removed: containerd 2.3 forgets a shim, which then runs for ever,
        when a pod is removed while something in it is being started."""
        return self._locks.setdefault(sandbox, asyncio.Lock())

    async def _loaded(self, reference: str) -> ImageInfo:
        """The CRI part of containerd learns of an image by an event, so a moment later."""
        end = time.monotonic() + self._config.call_timeout
        while (image := await self.image(reference)) is None:
            if time.monotonic() > end:
                raise EngineError(
                    f"the image {reference} was loaded, and the engine does not show it.",
                    hint="Does the archive call it so? Does something prune images?",
                )
            await asyncio.sleep(_LOADED_POLL)
        return image

    async def _remove_shell(self, sandbox: str) -> set[str]:
        """The control groups that it was in."""
        parents = set()
        for container in await self._calls.containers({LABEL_SANDBOX: sandbox}):
            with contextlib.suppress(NotFound, asyncio.TimeoutError):
                killing = self._kill_shell(container.id, sandbox)
                parents.add(await within(self._config.make_timeout, killing))
            await self._calls.remove_container(container.id, sandbox)
        return parents

    async def _kill_shell(self, container: str, sandbox: str) -> str:
        """Returns the control group that it was in, when the engine knows that it has ended: containerd fails to
        remove it in the moment before."""
        for pause in _pauses():
            answer = await self._calls.status(container, sandbox, verbose=True)
            if answer.status.state != cri.CONTAINER_RUNNING:
                return translate.cgroup_of_shell(answer)
            if process := ContainerProcess.open(translate.first_process(answer), container, self._cgroup_root):
                with process:
                    process.kill_rest()
            await asyncio.sleep(pause)
        raise AssertionError("unreachable: there is always another pause")

    async def _facts(self) -> engine.Engine:
        """What the engine can do, asked again after a while: it may have been replaced by another version."""
        if self._engine is not None and time.monotonic() - self._engine[0] < _ENGINE_FACTS_SECONDS:
            return self._engine[1]
        return await self._read_engine()

    async def _read_engine(self) -> engine.Engine:
        facts = await self._calls.engine()
        self._engine = time.monotonic(), facts
        return facts

    async def _cgroup_parent(self, pod: str, sandbox: str) -> str:
        try:
            return translate.cgroup_parent(await self._calls.pod_status(pod, sandbox))
        except NotFound:
            return ""

    async def _sandbox_info(
        self, whole: cri.PodSandbox | cri.Container, container: cri.Container | None
    ) -> SandboxInfo:
        if container is None or container.state != cri.CONTAINER_EXITED:
            return translate.sandbox_info(whole, container, None)
        try:
            answer = await self._calls.status(container.id, whole.labels[LABEL_SANDBOX])
        except NotFound:  # removed since it was listed
            return translate.sandbox_info(whole, None, None)
        return translate.sandbox_info(whole, container, answer.status)

    async def _clean_up(self, sandbox: str) -> None:
        """After a failure that the caller is about to hear of; what stays, the reaper finds by its label."""
        try:
            await self._remove(sandbox)
        except AircellError as error:
            logger.warning("sandbox %s is left behind after its creation failed: %s", sandbox, error)


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Bears an engine that is away for a while: a sandbox is none the worse for it."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return await ask()
        except EngineUnavailable:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(_SLOW_POLL)


def _pauses() -> Iterator[float]:
    """From 5 ms, doubling, up to the slow poll."""
    pause = 0.005
    while True:
        yield pause
        pause = min(2 * pause, _SLOW_POLL)
