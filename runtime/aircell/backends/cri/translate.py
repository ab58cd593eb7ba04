"""From our words to the CRI's and back. Pure: a plan in, a message out; one function for each message.

Sources: the CRI v1 ``api.proto``; what a kubelet sends for a *restricted* pod (its defaults of masked paths are the
engine's own only where the engine is asked for nothing at all, so they are always sent).
"""

from __future__ import annotations

import json
import signal as signals
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aircell.backends.base import LABEL_SANDBOX, IdRange, PodPlan, RegistryAuth, SandboxPlan
from aircell.backends.kernel_paths import MASKED_PATHS, READONLY_PATHS
from aircell.reference import own_digest
from aircell.spec import Mount, Resources, Security
from aircell.status import ExitStatus, ImageInfo, SandboxInfo
from aircell_cri.v1 import api_pb2 as cri

POD_NAMESPACE = "aircell"
CONTAINER_NAME = "agent"
LOCALHOST = "localhost/"
LOG_FILE = "agent.log"

UNKNOWN_EXIT = "the container engine was away when it ended, and cannot tell how it did"

_PAUSE_USER = 65535
_CPU_PERIOD = 100_000
_MIN_CPU_QUOTA = 1_000
_MAX_HOSTNAME = 63
_SIGNAL_BASE = 128
_NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Placement:
    """Where on this node and this engine a sandbox goes; see ``engine.py``."""

    runtime_handler: str
    cgroup_parent: str
    unified: Mapping[str, str] = field(default_factory=dict)
    """Settings of cgroup v2 for which the CRI has no field of its own."""


# --- The pod sandbox ---


def run_pod_sandbox(plan: PodPlan, placement: Placement) -> cri.RunPodSandboxRequest:
    return cri.RunPodSandboxRequest(
        config=pod_sandbox_config(plan, placement), runtime_handler=placement.runtime_handler
    )


def pod_sandbox_config(plan: PodPlan, placement: Placement) -> cri.PodSandboxConfig:
    dns = plan.spec.dns
    return cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=plan.id, uid=plan.id, namespace=POD_NAMESPACE),
        hostname="" if plan.spec.network == "host" else plan.id[:_MAX_HOSTNAME],  # there it is the host's own
        log_directory=plan.log_dir,
        dns_config=cri.DNSConfig(servers=dns.servers, searches=dns.searches, options=dns.options),
        labels=plan.labels,
        annotations=plan.annotations,
        linux=cri.LinuxPodSandboxConfig(
            cgroup_parent=placement.cgroup_parent,
            security_context=cri.LinuxSandboxSecurityContext(
                namespace_options=namespaces(plan),
                run_as_user=cri.Int64Value(value=_PAUSE_USER),
                run_as_group=cri.Int64Value(value=_PAUSE_USER),
                readonly_rootfs=True,
                seccomp=security_profile("runtime-default"),
            ),
        ),
    )


def namespaces(plan: PodPlan) -> cri.NamespaceOption:
    """Network as asked for; PID of the container's own; IPC and the rest of the pod's."""
    network = cri.NODE if plan.spec.network == "host" else cri.POD
    options = cri.NamespaceOption(network=network, pid=cri.CONTAINER, ipc=cri.POD)
    if plan.ids is not None:
        ids = id_mappings(plan.ids)
        options.userns_options.CopyFrom(cri.UserNamespace(mode=cri.POD, uids=ids, gids=ids))
    return options


def id_mappings(ids: IdRange | None) -> list[cri.IDMapping]:
    """From a user namespace of its own to the node; none without one."""
    return [cri.IDMapping(host_id=ids.start, container_id=0, length=ids.length)] if ids is not None else []


# --- The container ---


def create_container(plan: SandboxPlan, placement: Placement, pod: str) -> cri.CreateContainerRequest:
    return cri.CreateContainerRequest(
        pod_sandbox_id=pod,
        config=container_config(plan, placement),
        sandbox_config=pod_sandbox_config(plan, placement),
    )


def container_config(plan: SandboxPlan, placement: Placement) -> cri.ContainerConfig:
    return cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=CONTAINER_NAME),
        image=cri.ImageSpec(image=plan.image.id, user_specified_image=plan.spec.image),
        command=plan.argv,
        envs=[cri.KeyValue(key=name, value=value.encode()) for name, value in plan.env.items()],
        mounts=[mount(each, plan.ids) for each in plan.mounts],
        labels=plan.labels,
        annotations=plan.annotations,
        log_path=LOG_FILE,
        CDI_devices=[cri.CDIDevice(name=name) for name in plan.spec.devices],
        linux=cri.LinuxContainerConfig(
            resources=resources(plan.spec.resources, placement.unified), security_context=security_context(plan)
        ),
    )


def mount(wanted: Mount, ids: IdRange | None) -> cri.Mount:
    """With the mappings a file's owner is the same number inside a user namespace as on the node."""
    return cri.Mount(
        host_path=wanted.source,
        container_path=wanted.target,
        readonly=wanted.read_only,
        propagation=cri.PROPAGATION_PRIVATE,
        uidMappings=id_mappings(ids),
        gidMappings=id_mappings(ids),
    )


def resources(wanted: Resources, unified: Mapping[str, str]) -> cri.LinuxContainerResources:
    """CPU time as a quota and as a weight; memory without swap. For pids and shm the CRI has no field."""
    limits = cri.LinuxContainerResources(unified=unified)
    if wanted.cpus is not None:
        limits.cpu_period = _CPU_PERIOD
        limits.cpu_quota = max(_MIN_CPU_QUOTA, round(wanted.cpus * _CPU_PERIOD))
        limits.cpu_shares = max(2, round(wanted.cpus * 1024))
    if wanted.memory is not None:
        limits.memory_limit_in_bytes = wanted.memory
        limits.memory_swap_limit_in_bytes = wanted.memory  # memory and swap together: none is left for swap
    return limits


def security_context(plan: SandboxPlan) -> cri.LinuxContainerSecurityContext:
    spec, security = plan.spec, plan.spec.security
    context = cri.LinuxContainerSecurityContext(
        capabilities=capabilities(security),
        namespace_options=namespaces(plan),
        supplemental_groups=spec.groups,
        readonly_rootfs=security.read_only_root,
        no_new_privs=True,
        masked_paths=engines_part(MASKED_PATHS, plan),
        readonly_paths=engines_part(READONLY_PATHS, plan),
        seccomp=security_profile(security.seccomp, seccomp_file(security)),
    )
    if security.apparmor is not None:
        context.apparmor.CopyFrom(security_profile(security.apparmor, security.apparmor.removeprefix(LOCALHOST)))
    if spec.user.isdecimal():
        context.run_as_user.value = int(spec.user)
    else:
        context.run_as_username = spec.user
    if spec.group is not None:
        context.run_as_group.value = spec.group
    return context


def engines_part(paths: Sequence[str], plan: SandboxPlan) -> list[str]:
    """The kernel lets nobody mount a fresh /proc where parts of another are hidden, so a shell's is whole."""
    bare = plan.within or plan.bare_proc
    return [path for path in paths if not (bare and path.startswith("/proc/"))]


def capabilities(security: Security) -> cri.Capability:
    drop = ["ALL"] if security.profile == "restricted" else []
    return cri.Capability(add_capabilities=security.add_capabilities, drop_capabilities=drop)


def security_profile(name: str, local: str = "") -> cri.SecurityProfile:
    """``runtime-default``, ``unconfined`` or ``localhost/...``, for which the engine is told ``local``."""
    kind = cri.SecurityProfile
    if name.startswith(LOCALHOST):
        return kind(profile_type=kind.Localhost, localhost_ref=local)
    return kind(profile_type=kind.Unconfined if name == "unconfined" else kind.RuntimeDefault)


def seccomp_file(security: Security) -> str:
    """Path on the node of the profile in ``localhost/PATH``; empty for any other profile."""
    if not security.seccomp.startswith(LOCALHOST):
        return ""
    return "/" + security.seccomp.removeprefix(LOCALHOST).lstrip("/")


def auth(credentials: RegistryAuth | None) -> cri.AuthConfig | None:
    if credentials is None:
        return None
    return cri.AuthConfig(
        username=credentials.username, password=credentials.password, identity_token=credentials.identity_token
    )


# --- What the engine answers ---


def exit_status(status: cri.ContainerStatus, *, oom_seen: bool) -> ExitStatus:
    """How a container ended. containerd reports death by signal N as 128 + N, as a shell does, so a program that
    itself exits with such a code cannot be told from one that was killed."""
    oom_killed = oom_seen or status.reason == "OOMKilled"
    if status.reason == "Unknown":  # with an invented exit code
        return ExitStatus(oom_killed=oom_killed, reason=UNKNOWN_EXIT)
    reason = status.message or ("the kernel killed it for its memory limit" if oom_killed else "")
    number = status.exit_code - _SIGNAL_BASE
    if number in {int(each) for each in signals.Signals}:
        return ExitStatus(signal=number, oom_killed=oom_killed, reason=reason)
    return ExitStatus(code=status.exit_code, oom_killed=oom_killed, reason=reason)


def first_process(answer: cri.ContainerStatusResponse) -> int:
    """Its pid in the engine's PID namespace from a verbose status; 0 when the container does not run."""
    if answer.status.state != cri.CONTAINER_RUNNING:
        return 0
    return int(json.loads(answer.info.get("info", "{}")).get("pid", 0))


def pod_is_ready(answer: cri.PodSandboxStatusResponse) -> bool:
    return answer.status.state == cri.SANDBOX_READY


def cgroup_parent(answer: cri.PodSandboxStatusResponse) -> str:
    """What a pod sandbox was made with, from its verbose status; empty when the engine does not say."""
    config = json.loads(answer.info.get("info", "{}")).get("config", {})
    return str(config.get("linux", {}).get("cgroup_parent", ""))


def cgroup_of_shell(answer: cri.ContainerStatusResponse) -> str:
    """The group around a shell's own, from its verbose status; empty when the engine does not say."""
    path = json.loads(answer.info.get("info", "{}")).get("runtimeSpec", {}).get("linux", {}).get("cgroupsPath", "")
    return str(path).rpartition("/")[0]


def image_info(image: cri.Image, reference: str = "") -> ImageInfo:
    names = [*image.repo_tags, *image.repo_digests]
    return ImageInfo(
        id=image.id,
        reference=reference or (names[0] if names else image.id),
        digest=own_digest(reference, image.repo_digests),
        tags=tuple(image.repo_tags),
        size=image.size,
    )


def sandbox_info(
    whole: cri.PodSandbox | cri.Container, container: cri.Container | None, exited: cri.ContainerStatus | None
) -> SandboxInfo:
    """What the sandbox is as a whole, a pod or a shell, with its container, if it has one, and that container's
    status, if it has exited. What the container's labels say goes before what those of a prepared pod do."""
    return SandboxInfo(
        id=whole.labels[LABEL_SANDBOX],
        engine_id=whole.id,
        running=container is not None and container.state == cri.CONTAINER_RUNNING,
        created_at=whole.created_at / _NANOSECONDS,
        labels={**whole.labels, **(container.labels if container is not None else {})},
        annotations=dict(whole.annotations),
        image=container.image.image if container is not None else "",
        exit=exit_status(exited, oom_seen=False) if exited is not None else None,
    )


def foreign_pods(pods: Sequence[cri.PodSandbox], label: str) -> list[cri.PodSandbox]:
    """Those that carry ``label`` and are not ours."""
    return [pod for pod in pods if label in pod.labels and LABEL_SANDBOX not in pod.labels]
