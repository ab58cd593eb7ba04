"""The calls of the CRI that the backend makes, each with its deadline and its words for an error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

import grpc.aio

from aircell.backends.base import LABEL_SANDBOX
from aircell.backends.cri import errors
from aircell.backends.cri.client import CriClient
from aircell.backends.cri.config import CriConfig
from aircell.backends.cri.engine import Engine, read_engine
from aircell.errors import NotFound
from aircell.spec import SandboxSpec
from aircell_cri.v1 import api_pb2 as cri

logger = logging.getLogger(__name__)

Q = TypeVar("Q")
A = TypeVar("A")
Method: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[Q, A]"


class Calls:
    """What can be asked of one engine. ``sandbox`` is our id, for errors; pods and containers go by the engine's."""

    def __init__(self, client: CriClient, config: CriConfig) -> None:
        self._client = client
        self._config = config
        self._pods: dict[str, str] = {}
        self._containers: dict[str, str] = {}
        """The engine's ids by sandbox, until it is forgotten: they never change."""
        self._asking: set[asyncio.Future[Any]] = set()
        """The loop itself keeps no task alive."""

    # --- Questions ---

    async def engine(self) -> Engine:
        """What the engine is and can do."""
        runtime = self._client.runtime
        version = await self._ask(runtime.Version, cri.VersionRequest(), "asking for its version")
        status = await self._ask(runtime.Status, cri.StatusRequest(verbose=True), "asking for its status")
        return read_engine(version, status)

    async def pods(self, labels: Mapping[str, str]) -> list[cri.PodSandbox]:
        request = cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(label_selector=labels))
        return list((await self._ask(self._client.runtime.ListPodSandbox, request, "listing pod sandboxes")).items)

    async def pod(self, sandbox: str) -> str:
        """The engine's id of a sandbox's pod. Raises NotFound."""
        if sandbox not in self._pods:
            found = await self.pods({LABEL_SANDBOX: sandbox})
            if not found:
                raise NotFound("the container engine has no such pod sandbox.", sandbox=sandbox)
            self._pods[sandbox] = found[0].id
        return self._pods[sandbox]

    async def pod_status(self, pod: str, sandbox: str) -> cri.PodSandboxStatusResponse:
        """Verbose. Raises NotFound."""
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
        return await self._ask(self._client.runtime.PodSandboxStatus, request, "asking for a pod sandbox", sandbox)

    async def containers(self, labels: Mapping[str, str]) -> list[cri.Container]:
        request = cri.ListContainersRequest(filter=cri.ContainerFilter(label_selector=labels))
        return list((await self._ask(self._client.runtime.ListContainers, request, "listing containers")).containers)

    async def container(self, sandbox: str) -> str:
        """The engine's id of the one container of a sandbox. Raises NotFound."""
        if sandbox not in self._containers:
            found = await self.containers({LABEL_SANDBOX: sandbox})
            if not found:
                raise NotFound("the container engine has no such sandbox.", sandbox=sandbox)
            self._containers[sandbox] = found[0].id
        return self._containers[sandbox]

    def forget(self, sandbox: str) -> None:
        """What has been removed. Idempotent."""
        self._pods.pop(sandbox, None)
        self._containers.pop(sandbox, None)

    async def status(self, container: str, sandbox: str, *, verbose: bool = False) -> cri.ContainerStatusResponse:
        """``verbose`` tells the process and the whole OCI spec, and costs the engine milliseconds. Raises NotFound."""
        request = cri.ContainerStatusRequest(container_id=container, verbose=verbose)
        return await self._ask(self._client.runtime.ContainerStatus, request, "asking for a container", sandbox)

    # --- Sandboxes ---

    async def run_pod(self, request: cri.RunPodSandboxRequest, sandbox: str) -> str:
        """The engine's id of the new pod."""
        answer = await self._make(self._client.runtime.RunPodSandbox, request, "making the pod sandbox", sandbox)
        return answer.pod_sandbox_id

    async def create_container(self, request: cri.CreateContainerRequest, spec: SandboxSpec, sandbox: str) -> None:
        """Raises ImageError and UnsupportedSpec for what the spec asks for and is not there."""
        refine = errors.creating(spec)
        create = self._client.runtime.CreateContainer
        answer = await self._make(create, request, "making the container", sandbox, refine=refine)
        self._containers[sandbox] = answer.container_id

    async def start_container(self, container: str, sandbox: str) -> None:
        """Raises StartupFailed when the engine cannot find the program."""
        request = cri.StartContainerRequest(container_id=container)
        refine = errors.starting
        await self._do(self._client.runtime.StartContainer, request, "starting the container", sandbox, refine=refine)

    async def stop_container(self, container: str, sandbox: str, seconds: int) -> None:
        request = cri.StopContainerRequest(container_id=container, timeout=seconds)
        await self._end(self._client.runtime.StopContainer, request, "stopping the container", sandbox, extra=seconds)

    async def remove_container(self, container: str, sandbox: str) -> None:
        request = cri.RemoveContainerRequest(container_id=container)
        await self._end(self._client.runtime.RemoveContainer, request, "removing the container", sandbox)

    async def stop_pod(self, pod: str, sandbox: str) -> None:
        request = cri.StopPodSandboxRequest(pod_sandbox_id=pod)
        await self._end(self._client.runtime.StopPodSandbox, request, "stopping the pod sandbox", sandbox)

    async def remove_pod(self, pod: str, sandbox: str) -> None:
        request = cri.RemovePodSandboxRequest(pod_sandbox_id=pod)
        await self._end(self._client.runtime.RemovePodSandbox, request, "removing the pod sandbox", sandbox)

    # --- Images ---

    async def image(self, reference: str) -> cri.Image | None:
        request = cri.ImageStatusRequest(image=cri.ImageSpec(image=reference))
        answer = await self._ask(self._client.images.ImageStatus, request, "looking for an image")
        return answer.image if answer.image.id else None

    async def images(self) -> list[cri.Image]:
        return list((await self._ask(self._client.images.ListImages, cri.ListImagesRequest(), "listing images")).images)

    async def pull(self, reference: str, auth: cri.AuthConfig | None) -> None:
        """Raises the errors of a pull, see ``errors.py``."""
        await self._client.call(
            self._client.images.PullImage,
            cri.PullImageRequest(image=cri.ImageSpec(image=reference), auth=auth),
            seconds=self._config.pull_timeout,
            doing=f"pulling {reference}",
            refine=errors.pulling(reference),
        )

    async def remove_image(self, reference: str) -> None:
        request = cri.RemoveImageRequest(image=cri.ImageSpec(image=reference))
        await self._do(self._client.images.RemoveImage, request, f"removing the image {reference}")

    async def image_folder(self) -> str:
        answer = await self._ask(self._client.images.ImageFsInfo, cri.ImageFsInfoRequest(), "asking for its disk")
        return answer.image_filesystems[0].fs_id.mountpoint

    # --- How ---

    async def _ask(self, method: Method[Q, A], request: Q, doing: str, sandbox: str = "") -> A:
        """When this is cancelled the engine still answers, to nobody: grpcio 1.85 never frees a call that is cancelled
        just as its answer comes. To go when ``growth`` of the benchmarks shows the same without."""
        seconds = self._config.call_timeout
        asking = asyncio.ensure_future(
            self._client.call(method, request, seconds=seconds, doing=doing, sandbox=sandbox)
        )
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)
        return await asyncio.shield(asking)

    async def _make(
        self, method: Method[Q, A], request: Q, doing: str, sandbox: str, *, refine: errors.Refine | None = None
    ) -> A:
        try:
            return await self._do(method, request, doing, sandbox, refine=refine)
        except errors.SnapshotInTheWay as error:
            logger.warning("%s; once more", error)
            return await self._do(method, request, doing, sandbox, refine=refine)

    async def _do(
        self,
        method: Method[Q, A],
        request: Q,
        doing: str,
        sandbox: str = "",
        *,
        refine: errors.Refine | None = None,
        extra: float = 0,
    ) -> A:
        seconds = self._config.make_timeout + extra
        return await self._client.call(method, request, seconds=seconds, doing=doing, sandbox=sandbox, refine=refine)

    async def _end(self, method: Method[Q, A], request: Q, doing: str, sandbox: str, *, extra: float = 0) -> None:
        """For what is to be gone: that it is gone already is as good."""
        try:
            await self._do(method, request, doing, sandbox, extra=extra)
        except NotFound as error:
            logger.debug("%s: %s", doing, error)
