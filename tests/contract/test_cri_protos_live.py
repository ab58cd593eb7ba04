"""Our stubs talk to a real engine: each call that only asks is answered in words that we understand."""

from __future__ import annotations

import pytest

from aircell_cri.v1 import api_pb2 as cri
from tests.contract.engines import CONTAINERDS, RunningContainerd
from tests.contract.harness import IMAGE, Harness, speaking_to

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.parametrize("engine", CONTAINERDS, indirect=True, ids=lambda each: each.name),
]


async def test_every_question_has_an_answer(harness: Harness, engine: RunningContainerd) -> None:
    wanted, managed = engine.kind, engine.managed
    sandbox = await harness.start(["sleep", "60"])
    async with speaking_to(managed) as client:
        version = await client.runtime.Version(cri.VersionRequest())
        assert (version.runtime_name, version.runtime_api_version) == ("containerd", "v1")
        assert version.runtime_version.startswith(wanted.major)

        status = await client.runtime.Status(cri.StatusRequest(verbose=True))
        assert {each.type: each.status for each in status.status.conditions}.items() >= {
            "RuntimeReady": True,
            "NetworkReady": True,
        }.items()
        assert "config" in status.info

        [pod] = (await client.runtime.ListPodSandbox(cri.ListPodSandboxRequest())).items
        assert (pod.metadata.name, pod.state) == (sandbox, cri.SANDBOX_READY)
        pod_status = await client.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id))
        assert pod_status.status.linux.namespaces.options.pid == cri.CONTAINER

        [container] = (await client.runtime.ListContainers(cri.ListContainersRequest())).containers
        assert (container.pod_sandbox_id, container.state) == (pod.id, cri.CONTAINER_RUNNING)
        answer = await client.runtime.ContainerStatus(
            cri.ContainerStatusRequest(container_id=container.id, verbose=True)
        )
        assert answer.status.started_at >= answer.status.created_at > 0

        stats = await client.runtime.ContainerStats(cri.ContainerStatsRequest(container_id=container.id))
        assert stats.stats.memory.working_set_bytes.value > 0
        listed = await client.images.ListImages(cri.ListImagesRequest())
        assert IMAGE in {tag for image in listed.images for tag in image.repo_tags}
        usage = await client.images.ImageFsInfo(cri.ImageFsInfoRequest())
        assert usage.image_filesystems[0].fs_id.mountpoint
