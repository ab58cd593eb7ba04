"""What a node permits: each field refused by default or by a stricter policy, and permitted when the policy says so."""

from __future__ import annotations

from typing import Any

import pytest

from aircell.errors import RefusedByPolicy
from aircell.policy import Policy
from aircell.spec import Mount, SandboxSpec

IMAGE = "registry.example/team/image:1"


def spec(**fields: Any) -> SandboxSpec:
    return SandboxSpec(**{"image": IMAGE, **fields})


def test_the_defaults_of_a_spec_are_permitted_by_the_defaults_of_a_policy() -> None:
    Policy().check(spec())


@pytest.mark.parametrize(
    ("fields", "policy", "named"),
    [
        ({}, {"images": ["registry.example/other/*"]}, "policy.images"),
        ({"pull_policy": "always"}, {"pull_policies": ["missing"]}, "policy.pull_policies"),
        ({"requirements": ["pandas"]}, {"requirements": "none"}, "policy.requirements"),
        ({"user": "0"}, {}, "policy.root"),
        ({"user": "000"}, {}, "policy.root"),
        ({"user": "root"}, {}, "policy.root"),
        ({"user": "7"}, {"users": ["50000"]}, "policy.users"),
        ({"network": "host"}, {}, "policy.networks"),
        ({"network": "pod"}, {"networks": ["none"]}, "policy.networks"),
        ({"security": {"profile": "baseline"}}, {}, "policy.profiles"),
        ({"security": {"add_capabilities": ["NET_RAW"]}}, {}, "policy.capabilities"),
        ({"security": {"seccomp": "unconfined"}}, {}, "policy.seccomp"),
        ({"security": {"seccomp": "localhost/x.json"}}, {}, "policy.seccomp"),
        ({"security": {"apparmor": "unconfined"}}, {}, "policy.apparmor"),
        ({"runtime_handler": "runsc"}, {"runtime_handlers": ["runc"]}, "policy.runtime_handlers"),
        ({"parse_isolation": "image"}, {"parse_isolations": ["file"]}, "policy.parse_isolations"),
        ({"cgroup_parent": "/team"}, {}, "policy.cgroup_parents"),
        ({"devices": ["nvidia.com/gpu=0"]}, {}, "policy.devices"),
        ({"annotations": {"run.oci.handler": "krun"}}, {}, "policy.annotations"),
        ({"resources": {"cpus": 3}}, {"max_resources": {"cpus": 2}}, "policy.max_resources.cpus"),
        ({"resources": {"cpus": None}}, {"max_resources": {"cpus": 2}}, "policy.max_resources.cpus"),
        ({"resources": {"memory": "3Gi"}}, {"max_resources": {"memory": "2Gi"}}, "policy.max_resources.memory"),
        ({"resources": {"pids": 100}}, {"max_resources": {"pids": 99}}, "policy.max_resources.pids"),
        ({"resources": {"shm": "2Mi"}}, {"max_resources": {"shm": "1Mi"}}, "policy.max_resources.shm"),
        ({"resources": {"scratch": "2Mi"}}, {"max_resources": {"scratch": "1Mi"}}, "policy.max_resources.scratch"),
    ],
)
def test_what_is_not_permitted_is_refused_with_the_setting_to_change(
    fields: dict[str, Any], policy: dict[str, Any], named: str
) -> None:
    with pytest.raises(RefusedByPolicy) as caught:
        Policy.model_validate(policy).check(spec(**fields))
    assert f"`{named}" in caught.value.hint


@pytest.mark.parametrize(
    ("fields", "policy"),
    [
        ({}, {"images": ["registry.example/team/*"]}),
        ({"user": "root"}, {"root": True}),
        ({"network": "host"}, {"networks": ["host"]}),
        ({"security": {"profile": "baseline"}}, {"profiles": ["baseline"]}),
        ({"security": {"add_capabilities": ["NET_RAW"]}}, {"capabilities": ["NET_*"]}),
        ({"security": {"seccomp": "localhost/a.json"}}, {"seccomp": ["localhost/*"]}),
        ({"cgroup_parent": "/team/a"}, {"cgroup_parents": ["/team/*"]}),
        ({"devices": ["nvidia.com/gpu=0"]}, {"devices": ["nvidia.com/gpu=*"]}),
        ({"annotations": {"a/b": "c"}}, {"annotations": ["a/b"]}),
        ({"resources": {"cpus": 2}}, {"max_resources": {"cpus": 2}}),
    ],
)
def test_what_a_policy_names_is_permitted(fields: dict[str, Any], policy: dict[str, Any]) -> None:
    Policy.model_validate(policy).check(spec(**fields))


@pytest.mark.parametrize("name", ["aircell.dev/node", "io.kubernetes.pod.uid", "io.cri-containerd.kind"])
def test_labels_that_tell_whose_a_sandbox_is_are_refused(name: str) -> None:
    with pytest.raises(RefusedByPolicy, match="reserved prefix"):
        Policy().check(spec(labels={name: "x"}))


def test_a_refusal_says_what_why_and_what_to_change() -> None:
    with pytest.raises(RefusedByPolicy) as caught:
        Policy().check(spec(network="host"))
    assert str(caught.value) == (
        "network: 'host' is not permitted on this node (permitted: none, pod). "
        "Choose another, or add it to `policy.networks` in aircelld's configuration."
    )


def mount(source: str, *, read_only: bool = True) -> Mount:
    return Mount(source=source, target="/x", read_only=read_only)


def test_mounts_of_an_author_are_refused_unless_a_rule_names_them() -> None:
    policy = Policy.model_validate({"mounts": [{"path": "/data"}, {"path": "/data/out", "writable": True}]})
    policy.check_mounts([mount("/data"), mount("/data/in"), mount("/data/out/x", read_only=False)])
    for refused in (mount("/"), mount("/database"), mount("/etc")):
        with pytest.raises(RefusedByPolicy, match=r"policy\.mounts"):
            policy.check_mounts([refused])
    with pytest.raises(RefusedByPolicy, match="writable: true"):
        policy.check_mounts([mount("/data/in", read_only=False)])
    with pytest.raises(RefusedByPolicy, match="none at all"):
        Policy().check_mounts([mount("/data")])


def test_mounts_of_a_worker_are_read_only_and_never_show_what_is_protected() -> None:
    policy = Policy.model_validate({"worker_mounts": ["/opt/dags", "/run"], "protected": ["/opt/dags/secret", "/run"]})
    policy.check_worker_mounts([mount("/opt/dags/team")])
    with pytest.raises(RefusedByPolicy, match="only read-only"):
        policy.check_worker_mounts([mount("/opt/dags/team", read_only=False)])
    with pytest.raises(RefusedByPolicy, match=r"policy\.worker_mounts"):
        policy.check_worker_mounts([mount("/opt")])
    for shown in ("/opt/dags", "/opt/dags/secret", "/opt/dags/secret/deep", "/run/containerd"):
        with pytest.raises(RefusedByPolicy, match="protected"):
            policy.check_worker_mounts([mount(shown)])
    with pytest.raises(RefusedByPolicy, match="would show /opt/dags/state"):
        policy.check_worker_mounts([mount("/opt/dags/state")], protected=["/opt/dags/state"])
