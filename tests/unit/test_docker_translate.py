"""What the Docker backend asks for and understands, as whole values; no engine."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from aiodocker import DockerError

from aircell.backends.base import PullProgress, RegistryAuth, SandboxPlan
from aircell.backends.docker import engine, errors, translate
from aircell.backends.docker.config import DockerConfig, with_environment
from aircell.backends.docker.engine import Engine
from aircell.backends.docker.progress import Meter
from aircell.backends.kernel_paths import MASKED_PATHS, READONLY_PATHS
from aircell.errors import AircellError, EngineError, EngineUnavailable, ImageError, NotFound, UnsupportedSpec
from aircell.spec import Dns, Mount, Resources, SandboxSpec, Security
from aircell.status import ExitStatus, ImageInfo


def plan(spec: SandboxSpec, **fields: Any) -> SandboxPlan:
    return SandboxPlan(
        **{
            "id": "s1",
            "spec": spec,
            "image": ImageInfo(id="sha256:1", reference="image:tag"),
            "argv": ("python3", "agent.py"),
            "env": {"A": "b=c"},
            "mounts": [Mount(source="/run/s1", target="/run/aircell")],
            "labels": {"aircell.dev/sandbox": "s1"},
            "annotations": {},
            "log_dir": "/log/s1",
            **fields,
        }
    )


RESTRICTED: dict[str, Any] = {
    "Image": "sha256:1",
    "Entrypoint": ["python3", "agent.py"],
    "Cmd": [],
    "Env": ["A=b=c"],
    "User": "50000:0",
    "Labels": {"aircell.dev/sandbox": "s1"},
    "StopSignal": "SIGTERM",
    "Healthcheck": {"Test": ["NONE"]},
    "Hostname": "s1",
    "HostConfig": {
        "Mounts": [
            {
                "Type": "bind",
                "Source": "/run/s1",
                "Target": "/run/aircell",
                "ReadOnly": True,
                "BindOptions": {"Propagation": "rprivate"},
            }
        ],
        "NetworkMode": "none",
        "IpcMode": "private",
        "CapAdd": [],
        "CapDrop": ["ALL"],
        "GroupAdd": [],
        "SecurityOpt": ["no-new-privileges:true"],
        "ReadonlyRootfs": True,
        "MaskedPaths": list(MASKED_PATHS),
        "ReadonlyPaths": list(READONLY_PATHS),
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "2"}},
        "RestartPolicy": {"Name": "no"},
        "Init": False,
        "AutoRemove": False,
        "Memory": 2 * 2**30,
        "MemorySwap": 2 * 2**30,
        "PidsLimit": 512,
        "Dns": [],
        "DnsSearch": [],
        "DnsOptions": [],
    },
}


def test_the_defaults_are_restricted() -> None:
    made = translate.container(plan(SandboxSpec(image="i")), pod_network="bridge", cgroup_parent=None)
    assert made == RESTRICTED


def test_everything_that_a_spec_can_say() -> None:
    spec = SandboxSpec(
        image="i",
        resources=Resources(cpus=1.5, memory=None, pids=None, shm=4096),
        user="games",
        group=None,
        groups=(7, 8),
        network="host",
        dns=Dns(servers=("192.0.2.1",), searches=("x.test",), options=("ndots:1",)),
        security=Security(
            profile="baseline",
            add_capabilities=("NET_ADMIN",),
            seccomp="localhost/p.json",
            apparmor="localhost/p",
            read_only_root=False,
        ),
        runtime_handler="crun",
        cgroup_parent="/mine",
        devices=("v.com/c=d",),
    )
    made = translate.container(
        plan(spec, mounts=[], annotations={"note": "x"}), pod_network="bridge", cgroup_parent="/ours", seccomp="{}"
    )
    expected = {key: value for key, value in RESTRICTED.items() if key != "Hostname"} | {"User": "games"}
    limits = ("Memory", "MemorySwap", "PidsLimit")
    expected["HostConfig"] = {key: value for key, value in RESTRICTED["HostConfig"].items() if key not in limits} | {
        "Mounts": [],
        "NetworkMode": "host",
        "CapAdd": ["NET_ADMIN"],
        "CapDrop": [],
        "GroupAdd": ["7", "8"],
        "SecurityOpt": ["no-new-privileges:true", "seccomp={}", "apparmor=p"],
        "ReadonlyRootfs": False,
        "CpuPeriod": 100_000,
        "CpuQuota": 150_000,
        "CpuShares": 1536,
        "Dns": ["192.0.2.1"],
        "DnsSearch": ["x.test"],
        "DnsOptions": ["ndots:1"],
        "Runtime": "crun",
        "CgroupParent": "/mine",
        "ShmSize": 4096,
        "DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["v.com/c=d"]}],
        "Annotations": {"note": "x"},
    }
    assert made == expected


ABLE = Engine(
    version="25.0.0",
    api_version="1.44",
    handlers=frozenset({"runc"}),
    networks=frozenset({"bridge", "host", "none"}),
    limits=frozenset({"memory", "swap", "cpus", "pids"}),
    seccomp=True,
    apparmor=True,
    systemd=False,
    cdi=True,
    folder="/var/lib/docker",
)


def test_what_an_engine_says_of_itself() -> None:
    info = {
        "DockerRootDir": "/var/lib/docker",
        "SecurityOptions": ["name=apparmor", "name=seccomp,profile=default"],
        "Runtimes": {"runc": {}},
        "CDISpecDirs": ["/etc/cdi"],
        "CgroupDriver": "cgroupfs",
        **dict.fromkeys(("MemoryLimit", "SwapLimit", "CpuCfsQuota", "PidsLimit"), True),
    }
    networks = [{"Name": "bridge"}, {"Name": "host"}, {"Name": "none"}]
    assert engine.read_engine({"Version": "25.0.0", "ApiVersion": "1.44"}, info, networks) == ABLE


def test_an_engine_that_can_do_little() -> None:
    info = {"SecurityOptions": ["name=seccomp,profile=unconfined", "name=rootless"], "CgroupDriver": "systemd"}
    assert engine.read_engine({"Version": "20.10.24", "ApiVersion": "1.41"}, info, []) == Engine(
        version="20.10.24",
        api_version="1.41",
        handlers=frozenset(),
        networks=frozenset(),
        limits=frozenset(),
        seccomp=False,
        apparmor=False,
        systemd=True,
        cdi=False,
        folder="",
    )


UNABLE = Engine("20.10.24", "1.41", frozenset(), frozenset(), frozenset(), False, False, True, False, "")
BARE: dict[str, Any] = {
    "image": "i",
    "resources": {"memory": None, "pids": None},
    "security": {"seccomp": "unconfined"},
}


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"resources": {"memory": 2**20, "pids": None}}, "memory and swap"),
        ({"resources": {"memory": None, "pids": 9}}, "pids"),
        ({"resources": {"memory": None, "pids": None, "cpus": 1}}, "cpus"),
        ({"security": {}}, "seccomp"),
        ({"security": {"seccomp": "unconfined", "apparmor": "runtime-default"}}, "AppArmor"),
        ({"devices": ["v.com/c=d"]}, "devices"),
        ({"annotations": {"a": "b"}}, "API 1.43"),
        ({"runtime_handler": "runc"}, "runc"),
        ({"network": "pod"}, "bridge"),
        ({"cgroup_parent": "/a"}, "slice"),
    ],
)
def test_what_cannot_be_enforced_is_refused(field: dict[str, Any], words: str) -> None:
    engine.check(SandboxSpec.model_validate(BARE), UNABLE, "bridge")
    with pytest.raises(UnsupportedSpec, match=words):
        engine.check(SandboxSpec.model_validate(BARE | field), UNABLE, "bridge")
    able = field if "cgroup_parent" not in field else {}
    engine.check(SandboxSpec.model_validate(BARE | able), ABLE, "bridge")


def test_references() -> None:
    digest = "sha256:" + "0" * 64
    assert [translate.tagged(each) for each in ("cafe", "h:5/i", "i:t", f"i@{digest}", digest)] == [
        "cafe:latest", "h:5/i:latest", "i:t", f"i@{digest}", digest,
    ]  # fmt: skip


def test_credentials() -> None:
    assert translate.auth(None) is None
    assert translate.auth(RegistryAuth("u", "p")) == {"username": "u", "password": "p"}
    assert translate.auth(RegistryAuth(identity_token="t")) == {"identitytoken": "t"}


@pytest.mark.parametrize(
    ("state", "exit"),
    [
        ({"ExitCode": 3, "OOMKilled": False}, ExitStatus(code=3)),
        ({"ExitCode": 143, "OOMKilled": False}, ExitStatus(signal=15)),
        (
            {"ExitCode": 137, "OOMKilled": True},
            ExitStatus(signal=9, oom_killed=True, reason="the kernel killed it for its memory limit"),
        ),
        ({"ExitCode": 127, "OOMKilled": False, "Error": "no such file"}, ExitStatus(code=127, reason="no such file")),
    ],
)
def test_exit_status(state: dict[str, Any], exit: ExitStatus) -> None:
    assert translate.exit_status(state) == exit


def test_progress_adds_up_layers_and_never_goes_back() -> None:
    meter = Meter()
    messages: list[dict[str, Any]] = [
        {"status": "Pulling fs layer", "id": "a"},
        {"status": "Downloading", "id": "a", "progressDetail": {"current": 5, "total": 10}},
        {"status": "Downloading", "id": "b", "progressDetail": {"current": 1, "total": 4}},
        {"status": "Download complete", "id": "a"},
        {"status": "Extracting", "id": "a", "progressDetail": {"current": 2, "total": 10}},
    ]
    assert [meter.read(message) for message in messages] == [
        None, PullProgress(5, 10), PullProgress(6, 14), PullProgress(11, 14), None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (DockerError(900, "no socket"), EngineUnavailable, "/d.sock"),
        (aiohttp.ClientPayloadError("cut"), EngineUnavailable, "/d.sock"),
        (asyncio.TimeoutError(), EngineUnavailable, "more than 3 s"),
        (DockerError(404, "No such container"), NotFound, "No such container"),
        (DockerError(409, "Conflict"), EngineError, "Conflict"),
        (DockerError(400, "unable to find user joe: no matching entries"), ImageError, "no user joe"),
    ],
)
def test_errors(error: Exception, kind: type[AircellError], words: str) -> None:
    found = errors.translate(error, doing="starting", host="/d.sock", seconds=3, sandbox="s1", refine=errors.starting)
    assert type(found) is kind
    assert words in found.message
    assert found.sandbox == "s1"


def test_the_engine_is_found_as_dockers_own_clients_find_it() -> None:
    environment = {"DOCKER_HOST": "tcp://127.0.0.1:2376", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/certs"}
    found = with_environment(DockerConfig(), environment)
    assert (found.host, found.tls) == ("tcp://127.0.0.1:2376", "/certs")
    found = with_environment(DockerConfig(host="unix:///d.sock", tls="/mine"), environment)
    assert (found.host, found.tls) == ("unix:///d.sock", "/mine")
    assert with_environment(DockerConfig(), {}).host == "unix:///var/run/docker.sock"
