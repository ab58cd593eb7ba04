"""Plans to CRI messages and back, compared whole. The expected messages are also the documentation of what is sent."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
from google.protobuf import text_format

from aircell.backends.base import RegistryAuth, SandboxPlan
from aircell.backends.cri import translate
from aircell.backends.cri.translate import Placement
from aircell.spec import Dns, Mount, Resources, SandboxSpec, Security
from aircell.status import ExitStatus, ImageInfo, SandboxInfo
from aircell_cri.v1 import api_pb2 as cri

LABELS = {"aircell.dev/sandbox": "s1"}


def plan(spec: SandboxSpec) -> SandboxPlan:
    return SandboxPlan(
        id="s1",
        spec=spec,
        image=ImageInfo(id="sha256:abc", reference=spec.image),
        argv=["python3", "/run/aircell/agent.py"],
        env={"A": "ü", "EMPTY": ""},
        mounts=[
            Mount(source="/state/s1/run", target="/run/aircell"),
            Mount(source="/state/s1/tmp", target="/tmp", read_only=False),
        ],
        labels=LABELS,
        annotations={"note": "n"},
        log_dir="/state/s1/log",
    )


DEFAULT_POD = """
config {
  metadata { name: "s1" uid: "s1" namespace: "aircell" }
  hostname: "s1"
  log_directory: "/state/s1/log"
  dns_config {}
  labels { key: "aircell.dev/sandbox" value: "s1" }
  annotations { key: "note" value: "n" }
  linux {
    cgroup_parent: "/aircell/s1"
    security_context {
      namespace_options { network: POD pid: CONTAINER ipc: POD }
      run_as_user { value: 65535 }
      run_as_group { value: 65535 }
      readonly_rootfs: true
      seccomp { profile_type: RuntimeDefault }
    }
  }
}
runtime_handler: "runc-none"
"""

DEFAULT_CONTAINER = """
metadata { name: "agent" }
image { image: "sha256:abc" user_specified_image: "image:tag" }
command: "python3"
command: "/run/aircell/agent.py"
envs { key: "A" value: "\\303\\274" }
envs { key: "EMPTY" }
mounts { host_path: "/state/s1/run" container_path: "/run/aircell" readonly: true }
mounts { host_path: "/state/s1/tmp" container_path: "/tmp" }
labels { key: "aircell.dev/sandbox" value: "s1" }
annotations { key: "note" value: "n" }
log_path: "agent.log"
linux {
  resources { memory_limit_in_bytes: 2147483648 memory_swap_limit_in_bytes: 2147483648 }
  security_context {
    capabilities { drop_capabilities: "ALL" }
    namespace_options { network: POD pid: CONTAINER ipc: POD }
    run_as_user { value: 50000 }
    run_as_group { value: 0 }
    readonly_rootfs: true
    no_new_privs: true
    masked_paths: "/proc/acpi"
    masked_paths: "/proc/asound"
    masked_paths: "/proc/interrupts"
    masked_paths: "/proc/kcore"
    masked_paths: "/proc/keys"
    masked_paths: "/proc/latency_stats"
    masked_paths: "/proc/sched_debug"
    masked_paths: "/proc/scsi"
    masked_paths: "/proc/timer_list"
    masked_paths: "/proc/timer_stats"
    masked_paths: "/sys/devices/virtual/powercap"
    masked_paths: "/sys/firmware"
    readonly_paths: "/proc/bus"
    readonly_paths: "/proc/fs"
    readonly_paths: "/proc/irq"
    readonly_paths: "/proc/sys"
    readonly_paths: "/proc/sysrq-trigger"
    seccomp { profile_type: RuntimeDefault }
  }
}
"""


def test_default_pod() -> None:
    made = translate.run_pod_sandbox(plan(SandboxSpec(image="image:tag")), Placement("runc-none", "/aircell/s1"))
    assert made == text_format.Parse(DEFAULT_POD, cri.RunPodSandboxRequest())


def test_pod_on_the_nodes_network_with_dns() -> None:
    spec = SandboxSpec(
        image="image:tag", network="host", dns=Dns(servers=("192.0.2.1",), searches=("a.test",), options=("ndots:2",))
    )
    expected = text_format.Parse(DEFAULT_POD, cri.RunPodSandboxRequest())
    expected.config.hostname = ""
    expected.config.linux.security_context.namespace_options.network = cri.NODE
    expected.config.dns_config.MergeFrom(cri.DNSConfig(servers=["192.0.2.1"], searches=["a.test"], options=["ndots:2"]))
    expected.runtime_handler = ""
    assert translate.run_pod_sandbox(plan(spec), Placement("", "/aircell/s1")) == expected


def test_default_container() -> None:
    made = translate.container_config(plan(SandboxSpec(image="image:tag")), Placement("runc-none", "/aircell/s1"))
    assert made == text_format.Parse(DEFAULT_CONTAINER, cri.ContainerConfig())


def test_container_with_everything() -> None:
    spec = SandboxSpec(
        image="image:tag",
        user="airflow",
        group=None,
        groups=(7, 8),
        resources=Resources(cpus=1.5, memory=1000),
        security=Security(
            profile="baseline",
            add_capabilities=("NET_ADMIN",),
            seccomp="localhost/profiles/a.json",
            apparmor="localhost/a",
            read_only_root=False,
        ),
        devices=("vendor.com/gpu=0",),
    )
    expected = text_format.Parse(DEFAULT_CONTAINER, cri.ContainerConfig())
    expected.CDI_devices.add(name="vendor.com/gpu=0")
    expected.linux.resources.CopyFrom(
        cri.LinuxContainerResources(
            cpu_period=100_000,
            cpu_quota=150_000,
            cpu_shares=1536,
            memory_limit_in_bytes=1000,
            memory_swap_limit_in_bytes=1000,
            unified={"pids.max": "9"},
        )
    )
    context = expected.linux.security_context
    context.ClearField("run_as_user")
    context.ClearField("run_as_group")
    context.run_as_username = "airflow"
    context.supplemental_groups.extend([7, 8])
    context.readonly_rootfs = False
    context.capabilities.CopyFrom(cri.Capability(add_capabilities=["NET_ADMIN"]))
    context.seccomp.CopyFrom(
        cri.SecurityProfile(profile_type=cri.SecurityProfile.Localhost, localhost_ref="/profiles/a.json")
    )
    context.apparmor.CopyFrom(cri.SecurityProfile(profile_type=cri.SecurityProfile.Localhost, localhost_ref="a"))
    assert translate.container_config(plan(spec), Placement("", "/aircell", {"pids.max": "9"})) == expected


def test_create_container_repeats_the_pod() -> None:
    spec = SandboxSpec(image="image:tag")
    placement = Placement("runc-none", "/aircell/s1")
    assert translate.create_container(plan(spec), placement, "pod-1") == cri.CreateContainerRequest(
        pod_sandbox_id="pod-1",
        config=translate.container_config(plan(spec), placement),
        sandbox_config=translate.run_pod_sandbox(plan(spec), placement).config,
    )


@pytest.mark.parametrize(
    ("cpus", "quota", "shares"), [(None, 0, 0), (0.001, 1000, 2), (0.25, 25_000, 256), (64, 6_400_000, 65536)]
)
def test_cpus(cpus: float | None, quota: int, shares: int) -> None:
    made = translate.resources(Resources(cpus=cpus, memory=None), {})
    period = 100_000 if cpus else 0
    assert made == cri.LinuxContainerResources(cpu_period=period, cpu_quota=quota, cpu_shares=shares)


def test_auth() -> None:
    assert translate.auth(None) is None
    assert translate.auth(RegistryAuth("u", "p", "t")) == cri.AuthConfig(username="u", password="p", identity_token="t")


OOM = "the kernel killed it for its memory limit"


@pytest.mark.parametrize(
    ("status", "oom_seen", "expected"),
    [
        ({"exit_code": 0, "reason": "Completed"}, False, ExitStatus(code=0)),
        ({"exit_code": 3, "reason": "Error"}, False, ExitStatus(code=3)),
        ({"exit_code": 128, "reason": "Error"}, False, ExitStatus(code=128)),
        ({"exit_code": 143, "reason": "Error"}, False, ExitStatus(signal=signal.SIGTERM)),
        ({"exit_code": 192, "reason": "Error"}, False, ExitStatus(signal=signal.SIGRTMAX)),
        ({"exit_code": 193, "reason": "Error"}, False, ExitStatus(code=193)),
        ({"exit_code": 255, "reason": "Error"}, False, ExitStatus(code=255)),
        ({"exit_code": 255, "reason": "Unknown"}, False, ExitStatus(reason=translate.UNKNOWN_EXIT)),
        ({"exit_code": 137, "reason": "OOMKilled"}, False, ExitStatus(signal=9, oom_killed=True, reason=OOM)),
        ({"exit_code": 1, "reason": "Error"}, True, ExitStatus(code=1, oom_killed=True, reason=OOM)),
        (
            {"exit_code": 128, "reason": "StartError", "message": "no such file"},
            False,
            ExitStatus(code=128, reason="no such file"),
        ),
    ],
)
def test_exit_status(status: dict[str, Any], oom_seen: bool, expected: ExitStatus) -> None:
    made = translate.exit_status(cri.ContainerStatus(state=cri.CONTAINER_EXITED, **status), oom_seen=oom_seen)
    assert made == expected


def test_first_process() -> None:
    info = {"info": json.dumps({"pid": 17})}
    running = cri.ContainerStatus(state=cri.CONTAINER_RUNNING)
    exited = cri.ContainerStatus(state=cri.CONTAINER_EXITED)
    assert translate.first_process(cri.ContainerStatusResponse(status=running, info=info)) == 17
    assert translate.first_process(cri.ContainerStatusResponse(status=exited, info=info)) == 0
    assert translate.first_process(cri.ContainerStatusResponse(status=running)) == 0


def test_cgroup_parent() -> None:
    info = {"info": json.dumps({"config": {"linux": {"cgroup_parent": "/a/s1"}}})}
    assert translate.cgroup_parent(cri.PodSandboxStatusResponse(info=info)) == "/a/s1"
    assert translate.cgroup_parent(cri.PodSandboxStatusResponse()) == ""


def test_cgroup_of_shell() -> None:
    info = {"info": json.dumps({"runtimeSpec": {"linux": {"cgroupsPath": "/a/s1/0815"}}})}
    assert translate.cgroup_of_shell(cri.ContainerStatusResponse(info=info)) == "/a/s1"
    assert translate.cgroup_of_shell(cri.ContainerStatusResponse()) == ""


def test_image_info() -> None:
    image = cri.Image(id="sha256:1", repo_tags=["r/a:1", "r/a:2"], repo_digests=["r/a@sha256:9"], size=5)
    expected = ImageInfo(id="sha256:1", reference="r/a:1", digest="r/a@sha256:9", tags=("r/a:1", "r/a:2"), size=5)
    assert translate.image_info(image) == expected
    assert translate.image_info(image, "a:2").reference == "a:2"
    assert translate.image_info(cri.Image(id="sha256:1")) == ImageInfo(id="sha256:1", reference="sha256:1")


def test_sandbox_info() -> None:
    pod = cri.PodSandbox(id="p", created_at=1_500_000_000, labels=LABELS, annotations={"note": "n"})
    container = cri.Container(state=cri.CONTAINER_EXITED, image=cri.ImageSpec(image="i"))
    exited = cri.ContainerStatus(exit_code=2)
    assert translate.sandbox_info(pod, container, exited) == SandboxInfo(
        id="s1",
        engine_id="p",
        running=False,
        created_at=1.5,
        labels=LABELS,
        annotations={"note": "n"},
        image="i",
        exit=ExitStatus(code=2),
    )
    container.labels["dag"] = "d"
    assert translate.sandbox_info(pod, container, None).labels == {**LABELS, "dag": "d"}, "of a prepared pod"
    half = SandboxInfo("s1", "p", running=False, created_at=1.5, labels=LABELS, annotations={"note": "n"})
    assert translate.sandbox_info(pod, None, None) == half


def test_foreign_pods() -> None:
    ours = cri.PodSandbox(id="1", labels={**LABELS, "x": "y"})
    theirs = cri.PodSandbox(id="2", labels={"x": "y"})
    assert translate.foreign_pods([ours, theirs, cri.PodSandbox(id="3")], "x") == [theirs]
