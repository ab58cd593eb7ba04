"""What an engine can do, from its own answers, and what a spec becomes on it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from aircell.backends.cri.config import CriConfig
from aircell.backends.cri.engine import Engine, Node, place, read_engine
from aircell.backends.cri.translate import Placement
from aircell.errors import UnsupportedSpec
from aircell.spec import SandboxSpec
from aircell_cri.v1 import api_pb2 as cri

ENGINE = Engine(
    name="containerd",
    version="2.3.7",
    api_version="v1",
    default_handler="runc",
    handlers=frozenset({"runc", "runc-none", "crun"}),
    systemd_handlers=frozenset(),
    user_namespaces=frozenset(),
    cdi=False,
)
SYSTEMD = replace(ENGINE, systemd_handlers=frozenset({"runc", "runc-none"}))
V1 = Node(cgroup_v2=False, apparmor=False)
V2 = Node(cgroup_v2=True, apparmor=True)
CONFIG = CriConfig()


def test_containerd_1_tells_its_handlers_in_its_configuration() -> None:
    config = {"containerd": {"defaultRuntimeName": "runc", "runtimes": {"runc": {}, "runc-none": {}, "crun": {}}}}
    version = cri.VersionResponse(runtime_name="containerd", runtime_version="2.3.7", runtime_api_version="v1")
    assert read_engine(version, cri.StatusResponse(info={"config": json.dumps(config)})) == ENGINE


def test_handlers_in_a_field_of_their_own() -> None:
    handlers = [cri.RuntimeHandler(name=name) for name in ("", "runc", "runc-none", "crun")]
    info = {"config": json.dumps({"enableCDI": True})}
    version = cri.VersionResponse(runtime_name="containerd", runtime_version="2.3.7", runtime_api_version="v1")
    made = read_engine(version, cri.StatusResponse(runtime_handlers=handlers, info=info))
    assert made == replace(ENGINE, default_handler="", cdi=True)


@pytest.mark.parametrize(
    ("fields", "node", "expected"),
    [
        ({}, V1, Placement("runc-none", "/aircell/s1")),
        ({}, V2, Placement("runc-none", "/aircell", {"pids.max": "512"})),
        ({"resources": {"pids": None}}, V2, Placement("runc-none", "/aircell")),
        ({"network": "pod"}, V1, Placement("", "/aircell/s1")),
        ({"network": "host", "runtime_handler": "crun"}, V1, Placement("crun", "/aircell/s1")),
        ({"cgroup_parent": "/team"}, V1, Placement("runc-none", "/team/s1")),
        ({"security": {"apparmor": "unconfined"}}, V1, Placement("runc-none", "/aircell/s1")),
        ({"security": {"add_capabilities": ["CHOWN"]}, "user": "0"}, V1, Placement("runc-none", "/aircell/s1")),
    ],
)
def test_placement(fields: dict[str, Any], node: Node, expected: Placement) -> None:
    spec = SandboxSpec.model_validate({"image": "i", **fields})
    assert place(spec, "s1", ENGINE, node, CONFIG) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"runtime_handler": "crun"}, "`network: none` needs a runtime handler 'crun-none'.*--managed-containerd"),
        ({"runtime_handler": "runsc", "network": "pod"}, "no runtime handler 'runsc' .it has crun, runc, runc-none"),
        ({"devices": ["v.com/c=1"]}, "cannot give devices.*Enable CDI"),
        ({"security": {"apparmor": "runtime-default"}}, "no AppArmor"),
        ({"security": {"add_capabilities": ["CHOWN"]}}, "CHOWN would have no effect for user 50000.*user: 0"),
    ],
)
def test_refusals(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedSpec, match=message):
        place(SandboxSpec.model_validate({"image": "i", **fields}), "s1", ENGINE, V1, CONFIG)


def test_systemd_manages_control_groups() -> None:
    runtimes = {"runc": {"options": {"SystemdCgroup": True}}, "crun": {"options": None}}
    info = {"config": json.dumps({"containerd": {"runtimes": runtimes}})}
    made = read_engine(cri.VersionResponse(), cri.StatusResponse(info=info))
    assert made.systemd_handlers == {"runc"}


@pytest.mark.parametrize(
    ("parent", "network", "expected"),
    [
        (None, "none", Placement("runc-none", "aircell.slice", {"pids.max": "512"})),
        ("/a/b", "pod", Placement("", "a-b.slice", {"pids.max": "512"})),
        ("a.slice/a-b.slice", "pod", Placement("", "a-b.slice", {"pids.max": "512"})),
    ],
)
def test_parents_are_slices_under_systemd(parent: str | None, network: str, expected: Placement) -> None:
    spec = SandboxSpec.model_validate({"image": "i", "cgroup_parent": parent, "network": network})
    assert place(spec, "s1", SYSTEMD, V2, CONFIG) == expected


def test_pids_under_systemd_on_v1() -> None:
    spec = SandboxSpec(image="i")
    with pytest.raises(UnsupportedSpec, match=r"512 processes.*cgroup v1.*`resources.pids: null`"):
        place(spec, "s1", SYSTEMD, V1, CONFIG)
    spec = SandboxSpec.model_validate({"image": "i", "resources": {"pids": None}})
    assert place(spec, "s1", SYSTEMD, V1, CONFIG) == Placement("runc-none", "aircell.slice")
