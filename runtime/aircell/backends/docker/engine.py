"""What one engine can do, and what in a spec it therefore cannot enforce. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aircell.errors import UnsupportedSpec
from aircell.spec import Resources, SandboxSpec, Security

_ANNOTATIONS_API = (1, 43)


@dataclass(frozen=True)
class Engine:
    """What ``/version``, ``/info`` and ``/networks`` say."""

    version: str
    api_version: str
    handlers: frozenset[str]
    networks: frozenset[str]
    limits: frozenset[str]
    """Of memory, swap, cpus and pids those that it can set; a rootless engine may lack some."""
    seccomp: bool
    """It has a default profile that filters."""
    apparmor: bool
    systemd: bool
    """Systemd makes its control groups, which wants slices for parents."""
    cdi: bool
    """Devices can be named, see https://github.com/cncf-tags/container-device-interface."""
    folder: str
    """Where it keeps images and containers."""

    @property
    def annotations(self) -> bool:
        return tuple(int(part) for part in self.api_version.split(".")) >= _ANNOTATIONS_API


_LIMITS = {"memory": "MemoryLimit", "swap": "SwapLimit", "cpus": "CpuCfsQuota", "pids": "PidsLimit"}


def read_engine(version: Mapping[str, Any], info: Mapping[str, Any], networks: Sequence[Mapping[str, Any]]) -> Engine:
    security = dict(_security_option(each) for each in info.get("SecurityOptions") or ())
    return Engine(
        version=version["Version"],
        api_version=version["ApiVersion"],
        handlers=frozenset(info.get("Runtimes") or ()),
        networks=frozenset(network["Name"] for network in networks),
        limits=frozenset(name for name, key in _LIMITS.items() if info.get(key)),
        seccomp=security.get("seccomp", "unconfined") != "unconfined",
        apparmor="apparmor" in security,
        systemd=info.get("CgroupDriver") == "systemd",
        cdi=bool(info.get("CDISpecDirs")),
        folder=info.get("DockerRootDir", ""),
    )


def _security_option(text: str) -> tuple[str, str]:
    """``name=seccomp,profile=default`` as name and profile."""
    words = dict(word.partition("=")[::2] for word in text.split(","))
    return words["name"], words.get("profile", "")


def check(spec: SandboxSpec, engine: Engine, pod_network: str) -> None:
    """Raises UnsupportedSpec for what cannot be enforced."""
    _check_security(spec.security, spec.user, engine)
    _check_limits(spec.resources, engine)
    if spec.devices and not engine.cdi:
        raise UnsupportedSpec(
            f"Docker {engine.version} cannot give devices to a sandbox.",
            hint="Use Docker 25 or later with CDI enabled, or leave out `devices`.",
        )
    if spec.annotations and not engine.annotations:
        raise UnsupportedSpec(
            f"Docker {engine.version} (API {engine.api_version}) has no annotations; they came with API 1.43.",
            hint="Use `labels`, or Docker 24 or later.",
        )
    if spec.runtime_handler is not None and spec.runtime_handler not in engine.handlers:
        raise UnsupportedSpec(
            f"Docker has no runtime {spec.runtime_handler!r} (it has {', '.join(sorted(engine.handlers))}).",
            hint="Correct `runtime_handler`, or add it under `runtimes` in Docker's daemon.json.",
        )
    if spec.network == "pod" and pod_network not in engine.networks:
        raise UnsupportedSpec(
            f"Docker has no network {pod_network!r} (it has {', '.join(sorted(engine.networks))}).",
            hint="Make it with `docker network create`, or name another in `backends.docker.pod_network`.",
        )
    if engine.systemd and spec.cgroup_parent and not spec.cgroup_parent.endswith(".slice"):
        raise UnsupportedSpec(
            f"the control group {spec.cgroup_parent} is no slice, and systemd manages Docker's control groups.",
            hint="Give `cgroup_parent` as the name of a slice, such as aircell.slice.",
        )


def _check_security(security: Security, user: str, engine: Engine) -> None:
    if security.apparmor not in (None, "unconfined") and not engine.apparmor:
        raise UnsupportedSpec(
            f"the AppArmor profile {security.apparmor} cannot be enforced: Docker does not have AppArmor here.",
            hint="Leave out `security.apparmor`, or run this on a node that has it.",
        )
    if security.seccomp == "runtime-default" and not engine.seccomp:
        raise UnsupportedSpec(
            "Docker has no default seccomp profile: it was built or started without one.",
            hint="Remove `seccomp-profile: unconfined` from Docker's daemon.json.",
        )
    if security.add_capabilities and user not in ("0", "root"):
        raise UnsupportedSpec(
            f"the capabilities {', '.join(security.add_capabilities)} would have no effect for user {user}: "
            "Docker cannot give capabilities to a user other than 0.",
            hint="Leave out `security.add_capabilities`, or set `user: 0`.",
        )


def _check_limits(resources: Resources, engine: Engine) -> None:
    wanted = {
        "memory": resources.memory,
        "swap": resources.memory,
        "cpus": resources.cpus,
        "pids": resources.pids,
    }
    missing = [name for name, value in wanted.items() if value is not None and name not in engine.limits]
    if missing:
        raise UnsupportedSpec(
            f"Docker cannot limit {' and '.join(missing)} here.",
            hint="Give it the control groups (a rootless Docker needs cgroup v2 and systemd), or set "
            "`resources` to null for these.",
        )
