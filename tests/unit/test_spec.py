"""SandboxSpec: what it accepts, what it refuses, and that it survives a trip over the wire."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from aircell.spec import Job, LaunchRequest, Mount, SandboxSpec


def test_defaults_are_the_restricted_standard() -> None:
    assert SandboxSpec(image="i").model_dump() == {
        "image": "i",
        "pull_policy": "missing",
        "registry_credentials": None,
        "requirements": (),
        "python": "python3",
        "preload": (),
        "env": {},
        "mounts": (),
        "resources": {"cpus": None, "memory": 2 * 2**30, "pids": 512, "shm": None, "scratch": None},
        "user": "50000",
        "group": 0,
        "groups": (),
        "network": "none",
        "dns": {"servers": (), "searches": (), "options": ()},
        "security": {
            "profile": "restricted",
            "add_capabilities": (),
            "seccomp": "runtime-default",
            "apparmor": None,
            "read_only_root": True,
        },
        "runtime_handler": None,
        "cgroup_parent": None,
        "devices": (),
        "parse_isolation": "file",
        "labels": {},
        "annotations": {},
        "startup_timeout": 60.0,
        "stop_grace": 10.0,
    }


@pytest.mark.parametrize(
    ("text", "size"),
    [("512Mi", 512 * 2**20), ("1.5G", 1_500_000_000), ("2gi", 2**31), (4096, 4096), ("100", 100), ("1kB", 1000)],
)
def test_sizes(text: object, size: int) -> None:
    assert SandboxSpec.model_validate({"image": "i", "resources": {"memory": text}}).resources.memory == size


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"imag": "x"}, "Extra inputs"),
        ({"image": ""}, "at least 1 character"),
        ({"resources": {"memory": "lots"}}, "is not a size"),
        ({"resources": {"memory": 0}}, "greater than 0"),
        ({"env": {"A B": "1"}}, "not the name of an environment variable"),
        ({"env": {"A": "x\0y"}}, "NUL"),
        ({"mounts": [{"source": "rel", "target": "/a"}]}, "absolute"),
        ({"mounts": [{"source": "/a/../b", "target": "/a"}]}, "absolute"),
        ({"mounts": [{"source": "/a", "target": "/x"}, {"source": "/b", "target": "/x"}]}, "two mounts want /x"),
        ({"mounts": [{"source": "/a", "target": "/run/aircell/gate.sock"}]}, "nothing may be mounted"),
        ({"mounts": [{"source": "/a", "target": "/"}]}, "nothing may be mounted"),
        ({"network": "bridge"}, "none"),
        ({"security": {"seccomp": "off"}}, "pattern"),
        ({"stop_grace": -1}, "greater than or equal to 0"),
    ],
)
def test_bad_specs_are_refused_with_a_reason(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        SandboxSpec.model_validate({"image": "i", **fields})


def test_a_numeric_user_may_be_written_as_a_number() -> None:
    assert SandboxSpec.model_validate({"image": "i", "user": 1000}).user == "1000"


def test_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        SandboxSpec(image="i").image = "j"


def test_request_survives_json() -> None:
    request = LaunchRequest(
        spec=SandboxSpec(image="i", env={"K": "välue ☃"}, mounts=(Mount(source="/a", target="/b"),)),
        job=Job(kind="exec", argv=("true",)),
    )
    assert LaunchRequest.model_validate_json(request.model_dump_json()) == request


@pytest.mark.parametrize("job", [{"kind": "exec"}, {"kind": "runner"}, {"kind": "exec", "argv": ["x"], "runner": "y"}])
def test_a_job_is_one_thing(job: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="an exec job has argv"):
        Job.model_validate(job)
