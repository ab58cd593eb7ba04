"""What is particular to CRI engines: restarts, foreign pods, what one version can do and another cannot."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from aircell.backends.base import LABEL_SANDBOX, Backend
from aircell.backends.cri.backend import CriBackend
from aircell.backends.cri.translate import UNKNOWN_EXIT
from aircell.daemon.containerd import ManagedContainerd
from aircell.errors import NotFound, UnsupportedSpec
from aircell.status import ExitStatus
from aircell_cri.v1 import api_pb2 as cri
from tests.contract.engines import CONTAINERDS, RunningContainerd
from tests.contract.footprint import CGROUPS
from tests.contract.forks import FORKS
from tests.contract.harness import Harness, speaking_to
from tests.contract.test_lifecycle import SLEEP, is_up

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.parametrize("engine", [*CONTAINERDS, FORKS], indirect=True, ids=lambda each: each.name),
]


async def kill(managed: ManagedContainerd) -> None:
    """Kills containerd, and waits for the next one to start."""
    pid = managed.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    for _ in range(1000):
        await asyncio.sleep(0.02)
        if managed.pid not in (pid, None):
            return
    pytest.fail("containerd was not started again")


@pytest.mark.first_kind("its zygote may be lost with the engine: tests/integration/test_zygotes.py")
async def test_a_sandbox_outlives_the_engine(harness: Harness, engine: RunningContainerd) -> None:
    """Whoever waits hears of its end all the same, be it from before the restart, after it, or from another process."""
    managed = engine.managed
    sandbox = await harness.start("import time; time.sleep(3); print('done'); exit(5)")
    before = asyncio.create_task(harness.backend.wait(sandbox))
    await asyncio.sleep(0.2)
    await kill(managed)
    another = CriBackend({"socket": str(managed.socket)})
    try:
        after = asyncio.create_task(another.wait(sandbox))
        assert await before == ExitStatus(code=5)
        assert await after == ExitStatus(code=5)
        assert await another.log_tail(sandbox) == "done\n"
    finally:
        await another.close()


@pytest.mark.first_kind("its zygote may be lost with the engine: tests/integration/test_zygotes.py")
async def test_the_end_while_the_engine_is_away(harness: Harness, engine: RunningContainerd) -> None:
    managed = engine.managed
    sandbox = await harness.start("import time; time.sleep(0.7); exit(6)")
    waiting = asyncio.create_task(harness.backend.wait(sandbox))
    await asyncio.sleep(0.1)
    assert managed.pid is not None
    os.kill(managed.pid, signal.SIGSTOP)
    await asyncio.sleep(1)
    os.kill(managed.pid, signal.SIGKILL)
    told = ExitStatus(code=6) if engine.kind.major == "1.6." else ExitStatus(reason=UNKNOWN_EXIT)
    assert await waiting == told


@pytest.mark.first_kind("aircelld looks at each fork in /proc")
async def test_wait_where_processes_cannot_be_seen(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in another PID namespace, where the engine's pid means nothing."""

    def no_such_process(pid: int, flags: int = 0) -> int:
        raise ProcessLookupError(pid)

    monkeypatch.setattr(os, "pidfd_open", no_such_process)
    assert (await harness.run("import time; time.sleep(0.3); exit(8)")).exit == ExitStatus(code=8)


@pytest.mark.first_kind("a shell is no pod")
async def test_a_pod_without_a_container_is_listed_and_removed(harness: Harness, engine: RunningContainerd) -> None:
    """What a crash of aircelld between the two calls leaves behind."""
    plan = harness.plan("")
    await harness.backend.create(plan)
    async with speaking_to(engine.managed) as client:
        [container] = (await client.runtime.ListContainers(cri.ListContainersRequest())).containers
        await client.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container.id))
    [info] = await harness.backend.sandboxes({LABEL_SANDBOX: plan.id})
    assert (info.id, info.running, info.exit) == (plan.id, False, None)
    await harness.backend.remove(plan.id)
    assert await harness.backend.sandboxes({}) == []


@pytest.mark.first_kind("the pod of a shell is its zygote's")
async def test_a_prepared_pod_that_has_ended(harness: Harness, engine: RunningContainerd) -> None:
    plan = harness.plan("")
    for end in ("StopPodSandbox", "RemovePodSandbox"):
        pod = await harness.backend.prepare(plan)
        async with speaking_to(engine.managed) as client:
            await getattr(client.runtime, end)(getattr(cri, f"{end}Request")(pod_sandbox_id=pod))
        with pytest.raises(NotFound, match=plan.id):
            await harness.backend.create(dataclasses.replace(plan, pod=pod))
        await harness.backend.remove(plan.id)
    assert await harness.backend.sandboxes({}) == []


@pytest.mark.first_kind("a shell is no pod; its labels are among those of test_lifecycle.py")
async def test_labels_and_annotations_are_the_engines_own(harness: Harness, engine: RunningContainerd) -> None:
    """What ``crictl pods --label`` and ``crictl inspectp`` ask, and ``crictl ps`` and ``inspect`` of the container."""
    labels, annotations = {"aircell.dev/dag": "ärger", "team": "a/b"}, {"note": "grüße"}
    sandbox = await harness.start(["sleep", "60"], labels=labels, annotations=annotations)
    async with speaking_to(engine.managed) as client:
        wanted = {"aircell.dev/dag": "ärger"}
        pods = cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(label_selector=wanted))
        containers = cri.ListContainersRequest(filter=cri.ContainerFilter(label_selector=wanted))
        [pod] = (await client.runtime.ListPodSandbox(pods)).items
        [container] = (await client.runtime.ListContainers(containers)).containers
    for each in (pod, container):
        assert each.labels == {**labels, LABEL_SANDBOX: sandbox}
        assert each.annotations.items() >= annotations.items()


BUSY = "x, y = b'x' * (64 << 20), sum(range(10**7))\n" + SLEEP


async def test_crictl_shows_what_the_program_is_and_does(harness: Harness, engine: RunningContainerd) -> None:
    """The calls of ``crictl ps``, ``stats``, ``inspect`` and ``logs``.

    Of memory and CPU time no containerd tells anything where the tests run, so they are read where it would read them.
    """
    sandbox = await harness.start(BUSY)
    await is_up(harness, sandbox)
    wanted = {LABEL_SANDBOX: sandbox}
    async with speaking_to(engine.managed) as client:
        containers = cri.ListContainersRequest(filter=cri.ContainerFilter(label_selector=wanted))
        [listed] = (await client.runtime.ListContainers(containers)).containers
        all_stats = cri.ListContainerStatsRequest(filter=cri.ContainerStatsFilter(label_selector=wanted))
        [stats] = (await client.runtime.ListContainerStats(all_stats)).stats
        running = await client.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=listed.id))
        [memory] = CGROUPS.glob(f"memory/**/{listed.id}/memory.usage_in_bytes")
        [cpu] = CGROUPS.glob(f"cpuacct/**/{listed.id}/cpuacct.usage")
        used, nanoseconds = int(memory.read_text()), int(cpu.read_text())
        await harness.backend.stop(sandbox, 20)
        ended = await client.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=listed.id))
    assert (listed.state, running.status.state) == (cri.CONTAINER_RUNNING, cri.CONTAINER_RUNNING)
    assert stats.attributes.id == listed.id
    assert 64 << 20 < used < 128 << 20
    assert nanoseconds > 3 * 10**7
    assert (ended.status.state, ended.status.exit_code) == (cri.CONTAINER_EXITED, 7)
    [line] = Path(running.status.log_path).read_text().splitlines()
    assert line.endswith(" stdout F up")


async def test_no_control_group_is_left(harness: Harness) -> None:
    sandbox = await harness.start(["sleep", "60"])
    assert groups(sandbox)
    await harness.backend.remove(sandbox)
    assert groups(sandbox) == []


def groups(sandbox: str) -> list[Path]:
    return list(Path("/sys/fs/cgroup").glob(f"*/aircell/{sandbox}"))


@pytest_asyncio.fixture(loop_scope="session")
async def kubelets_pod(engine: RunningContainerd) -> AsyncIterator[None]:
    """A pod sandbox as a kubelet makes one."""
    async with speaking_to(engine.managed) as client:
        config = cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name="coredns", uid="u", namespace="kube-system"),
            labels={"io.kubernetes.pod.uid": "u"},
        )
        config.linux.security_context.namespace_options.network = cri.NODE
        pod = (await client.runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config))).pod_sandbox_id
        yield
        await client.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod))
        await client.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod))


@pytest.mark.usefixtures("kubelets_pod")
async def test_a_kubelet_is_recognised(backend: Backend) -> None:
    assert await backend.foreign_owner() == "a kubelet (it has the pod kube-system/coredns here)"
    assert await backend.sandboxes({}) == [], "another's pods are not ours"


async def test_info(backend: Backend, engine: RunningContainerd) -> None:
    info = await backend.info()
    assert (info.name, info.api_version) == ("containerd", "v1")
    assert info.version.startswith(engine.kind.major)
    assert {"runc", "runc-none", "crun", "crun-none"} <= set(info.runtime_handlers)
    assert info.user_namespaces == ({"", "runc", "runc-none"} if engine.kind.major == "2.3." else set())


async def test_a_device_that_the_node_does_not_have(harness: Harness, engine: RunningContainerd) -> None:
    plan = harness.plan("", devices=("aircell.test/device=none",))
    with pytest.raises(UnsupportedSpec, match="devices"):
        await harness.backend.create(plan)
    assert await harness.backend.sandboxes({}) == []
