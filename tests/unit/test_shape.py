"""Which requests one warm sandbox may serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aircell.daemon.shape import Shape
from aircell.spec import Job, LaunchRequest, Mount, SandboxSpec
from aircell.status import ImageInfo

IMAGE = ImageInfo(id="sha256:1", reference="team/etl:7", digest="team/etl@sha256:2")
RUNNER = Job(kind="runner", runner="x = 1")
LATE: dict[str, Any] = {
    "labels": {"team": "blue"},
    "pull_policy": "always",
    "startup_timeout": 5,
    "stop_grace": 1,
    "parse_isolation": "image",  # which is of parses alone, see below
}
OTHERS: dict[str, Any] = {
    "image": "team/etl:8",
    "registry_credentials": "team",
    "python": "python3.11",
    "preload": ["json"],
    "requirements": ["x==1"],
    "env": {"A": "1"},
    "mounts": [{"source": "/srv", "target": "/srv"}],
    "resources": {"memory": 2**30},
    "user": "1000",
    "group": 7,
    "groups": [8],
    "network": "pod",
    "dns": {"servers": ["10.0.0.1"]},
    "security": {"read_only_root": False},
    "runtime_handler": "crun",
    "cgroup_parent": "/x",
    "devices": ["vendor.com/gpu=1"],
    "annotations": {"a": "b"},
}


def shape(
    found: ImageInfo = IMAGE,
    job: Job = RUNNER,
    seen: tuple[Mount, ...] = (),
    uid: int = 50000,
    request: dict[str, Any] | None = None,
    **spec: Any,
) -> Shape:
    wanted = SandboxSpec(**{"image": "team/etl:7", **spec})
    return Shape.of(LaunchRequest(spec=wanted, job=job, **(request or {})), found, seen, uid)


def test_every_field_of_a_spec_is_one_or_the_other() -> None:
    assert set(SandboxSpec.model_fields) == {*LATE, *OTHERS}


@pytest.mark.parametrize("name", LATE)
def test_what_a_sandbox_gets_with_its_job_makes_no_difference(name: str) -> None:
    assert shape(**{name: LATE[name]}) == shape()


def test_only_parses_share_a_sandbox_and_with_nobody_who_wants_his_own() -> None:
    parse: dict[str, Any] = {"request": {"role": "parse"}}
    together, apart = shape(parse_isolation="image", **parse), shape(**parse)
    assert (together.shared, apart.shared, shape(parse_isolation="image").shared) == (True, False, False)
    assert together != apart
    assert apart == shape()


@pytest.mark.parametrize("name", OTHERS)
def test_what_cannot_be_changed_afterwards_makes_another_shape(name: str) -> None:
    assert shape(**{name: OTHERS[name]}) != shape()


def test_jobs_of_all_kinds_share_a_shape() -> None:
    other = Job(kind="runner", runner=RUNNER.runner, args={"entry": "parse"}, env={"LATE": "1"})
    assert shape(job=other, request={"role": "parse", "labels": {"dag": "d"}}) == shape(request={"role": "task"})


def test_another_image_runner_backend_or_user_is_another_shape() -> None:
    others = [
        shape(found=ImageInfo(id="sha256:other", reference=IMAGE.reference)),
        shape(job=Job(kind="runner", runner="x = 2")),
        shape(request={"backend": "docker"}),
        shape(uid=50001),
    ]
    assert len({*others, shape()}) == 5


PODS = {"network", "dns", "security", "runtime_handler", "cgroup_parent", "annotations"}


@pytest.mark.parametrize("name", OTHERS)
def test_what_a_pod_is_made_with_makes_another_pod(name: str) -> None:
    """Credentials are no part of it, but say whom it may serve."""
    other = shape(**{name: OTHERS[name]})
    assert (other.pod != shape().pod) == (name in PODS or name == "registry_credentials")


def test_pods_are_of_one_tenant_and_one_backend() -> None:
    others = [shape(), shape(uid=50001), shape(request={"backend": "docker"})]
    assert len({each.pod for each in others}) == 3
    assert shape(found=ImageInfo(id="sha256:other", reference="x")).pod == shape().pod


def test_a_mount_is_what_lies_there_now(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    mounts = (Mount(source=str(folder), target="/bundle"),)
    first = shape(seen=mounts)
    (folder / "dag.py").write_text("")
    assert shape(seen=mounts) == first
    assert shape(seen=(mounts[0].model_copy(update={"read_only": False}),)) != first
    folder.rename(tmp_path / "before")
    folder.mkdir()
    assert shape(seen=mounts) != first
