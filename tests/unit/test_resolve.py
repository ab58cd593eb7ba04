"""Layers to spec: merge rules, sources and the wording of every refusal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from aircell.errors import InvalidSpec
from aircell.spec import Mount, Resources, SandboxSpec, Security
from aircell_airflow import resolve
from aircell_airflow.resolve import BUILT_IN, Fields, Said


def said(values: Mapping[str, Any], place: str = "here") -> Fields:
    return resolve.say(values, lambda path: f"{place}:{'.'.join(path)}")


def test_say_takes_the_nested_form_apart() -> None:
    values = {
        "image": "a:1",
        "environment": {"TZ": "UTC"},
        "resources": {"memory": "1Gi"},
        "volumes": ["/data:/mnt", "/out:/out:rw", {"source": "/x", "target": "/y/"}],
        "preload": ["pandas"],
    }
    assert said(values) == {
        ("image",): Said("a:1", "here:image"),
        ("env", "TZ"): Said("UTC", "here:environment.TZ"),
        ("resources", "memory"): Said("1Gi", "here:resources.memory"),
        ("mounts", "/mnt"): Said({"source": "/data", "target": "/mnt", "read_only": True}, "here:volumes.0"),
        ("mounts", "/out"): Said({"source": "/out", "target": "/out", "read_only": False}, "here:volumes.1"),
        ("mounts", "/y"): Said({"source": "/x", "target": "/y/"}, "here:volumes.2"),
        ("preload",): Said(["pandas"], "here:preload"),
    }


def test_maps_and_mounts_merge_by_key_and_all_else_is_replaced() -> None:
    low = {
        "image": "low",
        "env": {"A": "low", "B": "low"},
        "mounts": ["/low:/a", "/low:/b"],
        "preload": ["low", "low2"],
        "resources": {"memory": "1Gi", "cpus": 1},
        "labels": {"app": "low"},
        "network": "pod",
    }
    high = {
        "env": {"B": "high"},
        "mounts": ["/high:/b:rw"],
        "preload": ["high"],
        "resources": {"memory": None},
        "security": {"read_only_root": False},
    }
    spec, sources = resolve.build([said(low, "low"), said(high, "high")])
    assert spec == SandboxSpec(
        image="low",
        env={"A": "low", "B": "high"},
        mounts=(
            Mount(source="/low", target="/a", read_only=True),
            Mount(source="/high", target="/b", read_only=False),
        ),
        preload=("high",),
        resources=Resources(memory=None, cpus=1.0),
        labels={"app": "low"},
        network="pod",
        security=Security(read_only_root=False),
    )
    assert {name: source for name, source in sources.items() if source != BUILT_IN} == {
        "image": "low:image",
        "env.A": "low:env.A",
        "env.B": "high:env.B",
        "mounts./a": "low:mounts.0",
        "mounts./b": "high:mounts.0",
        "preload": "high:preload",
        "resources.memory": "high:resources.memory",
        "resources.cpus": "low:resources.cpus",
        "labels.app": "low:labels.app",
        "network": "low:network",
        "security.read_only_root": "high:security.read_only_root",
    }


def test_every_value_has_a_source() -> None:
    spec, sources = resolve.build([said({"image": "a", "env": {"X.Y": "1"}, "volumes": ["/a:/b"]})])
    assert sources.keys() == resolve.dotted_values(spec).keys()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"imagee": "x"}, "here:imagee: imagee: unknown key; known here: image, pull_policy, "),
        (
            {"resources": {"memroy": 1}},
            "here:resources.memroy: resources.memroy: unknown key; known here: cpus, memory",
        ),
        ({"resources": {"memory": "lots"}}, "here:resources.memory: resources.memory: 'lots' is not a size"),
        ({"resources": {"pids": "x"}}, "here:resources.pids: resources.pids: Input should be a valid integer"),
        ({"resources": {"pids": True}}, "here:resources.pids: resources.pids: must not be true or false"),
        ({"startup_timeout": True}, "here:startup_timeout: startup_timeout: must not be true or false"),
        ({"resources": {"memory": "9" * 4000}}, "here:resources.memory: resources.memory: 9999"),
        ({"resources": {"cpus": float("inf")}}, "here:resources.cpus: resources.cpus: Input should be a finite number"),
        ({"resources": 5}, "here:resources: resources: must be a mapping, not 5"),
        ({"env": ["A=1"]}, "here:env: env: must be a mapping, not ['A=1']"),
        ({"env": {"A": None}}, "here:env.A: env.A: Input should be a valid string"),
        ({"env": {"A B": "1"}}, "here:env.A B: env: 'A B' is not the name of an environment variable"),
        ({"env": {}, "environment": {}}, "here:environment: environment: the same as env, which is set too"),
        ({"image": None}, "here:image: image: Input should be a valid string"),
        ({"image": ""}, "here:image: image: String should have at least 1 character"),
        ({"network": "bridge"}, "here:network: network: Input should be 'none', 'host' or 'pod'"),
        ({"volumes": "/a:/b"}, "here:volumes: volumes: must be a list, not '/a:/b'"),
        ({"volumes": ["/a"]}, "here:volumes.0: volumes[0]: '/a' is not a mount."),
        ({"volumes": ["/a:/b:rx"]}, "here:volumes.0: volumes[0]: '/a:/b:rx' is not a mount."),
        ({"volumes": [{"source": "/a"}]}, "here:volumes.0: volumes[0]: {'source': '/a'} is not a mount."),
        ({"volumes": ["a:/b"]}, "here:volumes.0: mounts./b.source: 'a' must be an absolute path without '..'"),
        ({"volumes": ["/a/../etc:/b"]}, "here:volumes.0: mounts./b.source: '/a/../etc' must be an absolute path"),
        ({"volumes": ["/a:/run/aircell/x"]}, "here:volumes.0: mounts./run/aircell/x: nothing may be mounted at"),
        ({"volumes": ["/a:/b", "/c:/b/"]}, "here:volumes.1: volumes[1]: /b/ is mounted by here:volumes.0 too"),
        (
            {"volumes": [{"source": "/a", "target": "/b", "readonly": True}]},
            "here:volumes.0: mounts./b.readonly: unknown key; known here: source, target, read_only",
        ),
        ({"security": {"profile": "privileged"}}, "here:security.profile: security.profile: Input should be"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place_and_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        resolve.check(said(values))
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 800


def test_all_wrong_values_are_named_at_once() -> None:
    with pytest.raises(InvalidSpec, match=r"here:user: user: .*; here:dns.server: dns.server: unknown key"):
        resolve.check(said({"user": [], "dns": {"server": "x"}}))


def test_no_image_says_where_to_name_one() -> None:
    with pytest.raises(InvalidSpec, match=r"^no image: name one in \[sandbox_runtime\] image"):
        resolve.build([said({"network": "none"})])


def test_a_wrong_value_is_blamed_on_the_layer_that_said_it() -> None:
    with pytest.raises(InvalidSpec, match=r"^high:network: network: Input should be"):
        resolve.build([said({"image": "a", "network": "none"}, "low"), said({"network": "x"}, "high")])


def test_changed_blames_only_what_changed() -> None:
    before, sources = resolve.build([said({"image": "a", "env": {"A": "1", "B": "1"}})])
    after = before.model_copy(update={"image": "b", "env": {"A": "1", "B": "2", "C": "3"}})
    changed = resolve.changed(before, after, "the hook", sources)
    assert {name: source for name, source in changed.items() if source == "the hook"} == {
        "image": "the hook",
        "env.B": "the hook",
        "env.C": "the hook",
    }
    assert changed["env.A"] == "here:env.A"
    assert changed["network"] == BUILT_IN
