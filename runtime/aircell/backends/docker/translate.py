"""From our words to Docker's and back. Pure: a plan in, the body of a request out.

Source: Docker's Engine API, https://docs.docker.com/reference/api/engine/version/v1.41/ and later.
"""

from __future__ import annotations

import re
import signal as signals
from collections.abc import Mapping, Sequence
from typing import Any

from aircell.backends.base import LABEL_SANDBOX, RegistryAuth, SandboxPlan
from aircell.backends.kernel_paths import MASKED_PATHS, READONLY_PATHS
from aircell.reference import own_digest
from aircell.spec import Mount, Resources, SandboxSpec, Security
from aircell.status import ExitStatus, ImageInfo, SandboxInfo

NAME_PREFIX = "aircell-"
"""Docker takes the beginning of a container's id, which is hexadecimal, for its name; no such name begins like this."""
LOCALHOST = "localhost/"
SHM = "/dev/shm"  # noqa: S108 - the path inside the sandbox

_CPU_PERIOD = 100_000
_MIN_CPU_QUOTA = 1_000
_MAX_HOSTNAME = 63
_SIGNAL_BASE = 128
_IMAGE_ID = re.compile(r"^sha256:[0-9a-f]{64}$")
_LOG = {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "2"}}
"""Bounded: it holds what the agent itself says; a job's output does not come here."""


def name(sandbox: str) -> str:
    return NAME_PREFIX + sandbox


def sandbox(listed: Mapping[str, Any]) -> str:
    """Ours, of a container as ``/containers/json`` has it."""
    return str(listed["Labels"][LABEL_SANDBOX])


# --- The container ---


def container(plan: SandboxPlan, *, pod_network: str, cgroup_parent: str | None, seccomp: str = "") -> dict[str, Any]:
    """The body of ``POST /containers/create``. ``seccomp`` is the text of the profile in ``localhost/PATH``."""
    spec = plan.spec
    body: dict[str, Any] = {
        "Image": plan.image.id,
        "Entrypoint": list(plan.argv),
        "Cmd": [],
        "Env": [f"{key}={value}" for key, value in plan.env.items()],
        "User": spec.user if spec.group is None else f"{spec.user}:{spec.group}",
        "Labels": dict(plan.labels),
        "StopSignal": "SIGTERM",
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": host_config(plan, pod_network=pod_network, cgroup_parent=cgroup_parent, seccomp=seccomp),
    }
    if spec.network != "host":  # there it is the host's own
        body["Hostname"] = plan.id[:_MAX_HOSTNAME]
    return body


def host_config(plan: SandboxPlan, *, pod_network: str, cgroup_parent: str | None, seccomp: str) -> dict[str, Any]:
    spec = plan.spec
    body: dict[str, Any] = {
        "Mounts": [mount(each) for each in plan.mounts],
        "NetworkMode": pod_network if spec.network == "pod" else spec.network,
        "IpcMode": "private",
        "CapAdd": list(spec.security.add_capabilities),
        "CapDrop": ["ALL"] if spec.security.profile == "restricted" else [],
        "GroupAdd": [str(group) for group in spec.groups],
        "SecurityOpt": security_options(spec.security, seccomp),
        "ReadonlyRootfs": spec.security.read_only_root,
        "MaskedPaths": list(MASKED_PATHS),
        "ReadonlyPaths": list(READONLY_PATHS),
        "LogConfig": _LOG,
        "RestartPolicy": {"Name": "no"},
        "Init": False,
        "AutoRemove": False,
        **resources(spec.resources),
        **dns(spec),
    }
    if spec.runtime_handler:
        body["Runtime"] = spec.runtime_handler
    if parent := spec.cgroup_parent or cgroup_parent:
        body["CgroupParent"] = parent
    if spec.resources.shm is not None and all(each.target != SHM for each in plan.mounts):
        body["ShmSize"] = spec.resources.shm
    if spec.devices:
        body["DeviceRequests"] = [{"Driver": "cdi", "DeviceIDs": list(spec.devices)}]
    if plan.annotations:
        body["Annotations"] = dict(plan.annotations)
    return body


def mount(wanted: Mount) -> dict[str, Any]:
    return {
        "Type": "bind",
        "Source": wanted.source,
        "Target": wanted.target,
        "ReadOnly": wanted.read_only,
        "BindOptions": {"Propagation": "rprivate"},
    }


def resources(wanted: Resources) -> dict[str, Any]:
    """CPU time as a quota and as a weight; memory without swap."""
    limits: dict[str, Any] = {}
    if wanted.cpus is not None:
        limits["CpuPeriod"] = _CPU_PERIOD
        limits["CpuQuota"] = max(_MIN_CPU_QUOTA, round(wanted.cpus * _CPU_PERIOD))
        limits["CpuShares"] = max(2, round(wanted.cpus * 1024))
    if wanted.memory is not None:
        limits["Memory"] = limits["MemorySwap"] = wanted.memory  # memory and swap together: none is left for swap
    if wanted.pids is not None:
        limits["PidsLimit"] = wanted.pids
    return limits


def dns(spec: SandboxSpec) -> dict[str, list[str]]:
    return {"Dns": list(spec.dns.servers), "DnsSearch": list(spec.dns.searches), "DnsOptions": list(spec.dns.options)}


def security_options(security: Security, seccomp: str) -> list[str]:
    """What is not said here is Docker's default, which ``engine.check`` has seen to be in force."""
    options = ["no-new-privileges:true"]
    if security.seccomp != "runtime-default":
        options.append(f"seccomp={seccomp if security.seccomp.startswith(LOCALHOST) else security.seccomp}")
    if security.apparmor not in (None, "runtime-default"):
        options.append(f"apparmor={str(security.apparmor).removeprefix(LOCALHOST)}")
    return options


def seccomp_file(security: Security) -> str:
    """Path on the node of the profile in ``localhost/PATH``; empty for any other profile."""
    if not security.seccomp.startswith(LOCALHOST):
        return ""
    return "/" + security.seccomp.removeprefix(LOCALHOST).lstrip("/")


# --- Images ---


def tagged(reference: str) -> str:
    """With a tag where it has neither that nor a digest: Docker takes a bare name for the beginning of an id, too."""
    last = reference.rpartition("/")[2]
    return reference if _IMAGE_ID.match(reference) or ":" in last or "@" in last else f"{reference}:latest"


def auth(credentials: RegistryAuth | None) -> dict[str, str] | None:
    if credentials is None:
        return None
    if credentials.identity_token:
        return {"identitytoken": credentials.identity_token}
    return {"username": credentials.username, "password": credentials.password}


def image_info(image: Mapping[str, Any], reference: str = "") -> ImageInfo:
    """From an inspected or a listed image; an image without a name is listed as ``<none>:<none>``."""
    tags = tuple(tag for tag in image.get("RepoTags") or () if not tag.startswith("<none>"))
    digests = [digest for digest in image.get("RepoDigests") or () if not digest.startswith("<none>")]
    names = [*tags, *digests, image["Id"]]
    return ImageInfo(
        id=image["Id"],
        reference=reference or names[0],
        digest=own_digest(reference, digests),
        tags=tags,
        size=image["Size"],
    )


# --- What the engine answers ---


def exit_status(state: Mapping[str, Any]) -> ExitStatus:
    """How a container ended. Docker reports death by signal N as 128 + N, as a shell does, so a program that itself
    exits with such a code cannot be told from one that was killed."""
    oom_killed = bool(state["OOMKilled"])
    reason = state.get("Error") or ("the kernel killed it for its memory limit" if oom_killed else "")
    number = state["ExitCode"] - _SIGNAL_BASE
    if number in {int(each) for each in signals.Signals}:
        return ExitStatus(signal=number, oom_killed=oom_killed, reason=reason)
    return ExitStatus(code=state["ExitCode"], oom_killed=oom_killed, reason=reason)


def has_ended(state: Mapping[str, Any]) -> bool:
    return state["Status"] in ("exited", "dead")


def sandbox_info(listed: Mapping[str, Any], inspected: Mapping[str, Any]) -> SandboxInfo:
    """A container as ``/containers/json`` and ``/containers/ID/json`` have it."""
    state = inspected["State"]
    return SandboxInfo(
        id=sandbox(listed),
        engine_id=listed["Id"],
        running=state["Running"],
        created_at=float(listed["Created"]),
        labels=dict(listed["Labels"]),
        annotations=dict(inspected["HostConfig"].get("Annotations") or {}),
        image=inspected["Config"]["Image"],
        exit=exit_status(state) if has_ended(state) else None,
    )


def label_filter(labels: Mapping[str, str]) -> list[str]:
    return [LABEL_SANDBOX, *(f"{key}={value}" for key, value in labels.items())]


def tail(parts: Sequence[str], max_bytes: int) -> str:
    """The last ``max_bytes`` of a log that came in pieces."""
    return "".join(parts).encode()[-max_bytes:].decode(errors="replace")
