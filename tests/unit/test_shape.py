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
LATE: dict[str, Any] = {"labels": {"team": "blue"}, "pull_policy": "always", "startup_timeout": 5, "stop_grace": 1}
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
