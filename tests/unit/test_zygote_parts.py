"""The pure parts of zygotes: what is asked of the engine, read from /proc, and put into the filter."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from aircell import zygote
from aircell.backends.base import IdRange
from aircell.backends.cri import translate
from aircell.backends.cri.translate import Placement
from aircell.daemon import outside
from aircell.daemon.config import Config, ZygoteSettings
from aircell.daemon.outside import View
from aircell.daemon.zygote import fork_order, why_not
from aircell.daemon.zygotes import free_range
from aircell.errors import EngineError, StartupFailed
from aircell.spec import Mount, SandboxSpec, Security
from aircell_cri.v1 import api_pb2 as cri
from tests.unit.test_cri_translate import plan

IDS = IdRange(1 << 20)
MAPPING = cri.IDMapping(host_id=1 << 20, container_id=0, length=1 << 16)
SPEC = SandboxSpec(image="i")


def view(number: int, **changed: object) -> View:
    """A process whose namespaces have the numbers after this."""
    kinds = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
    made = View(
        uids=frozenset({IDS.start + 50000}),
        gids=frozenset({IDS.start}),
        groups=frozenset({IDS.start, IDS.start + 7}),
        capabilities=0,
        no_new_privileges=True,
        filters=2,
        namespaces={kind: number + index for index, kind in enumerate(kinds)},
        cgroups={"memory": "/a"},
    )
    return replace(made, **changed)  # type: ignore[arg-type]  # the test's own names


SHELL, ZYGOTE = view(100), view(200)
JOINED = {"mnt": SHELL.namespaces["mnt"], "user": SHELL.namespaces["user"]}


def fork(namespaces: Mapping[str, int] = {}, **changed: object) -> View:
    made = view(300, **changed)
    return replace(made, namespaces={**made.namespaces, **JOINED, **namespaces})


# --- What the engine is asked for ---


def test_a_pod_in_a_user_namespace() -> None:
    asked = translate.pod_sandbox_config(replace(plan(SPEC), ids=IDS), Placement("runc-none", "/aircell/s1"))
    users = cri.UserNamespace(mode=cri.POD, uids=[MAPPING], gids=[MAPPING])
    assert asked.linux.security_context.namespace_options == cri.NamespaceOption(
        network=cri.POD, pid=cri.CONTAINER, ipc=cri.POD, userns_options=users
    )


def test_a_shell_differs_from_a_sandbox_in_its_users_and_what_is_hidden_of_proc_and_in_nothing_else() -> None:
    placement = Placement("runc-none", "/aircell/s1")
    expected = translate.container_config(plan(SPEC), placement)
    security = expected.linux.security_context
    security.namespace_options.userns_options.CopyFrom(cri.UserNamespace(mode=cri.POD, uids=[MAPPING], gids=[MAPPING]))
    security.masked_paths[:] = ["/sys/devices/virtual/powercap", "/sys/firmware"]
    security.readonly_paths[:] = []
    for mount in expected.mounts:
        mount.uidMappings.append(MAPPING)
        mount.gidMappings.append(MAPPING)
    assert translate.container_config(replace(plan(SPEC), ids=IDS, within="z1"), placement) == expected


def test_the_order_for_a_fork() -> None:
    shm = Mount(source="/x", target="/dev/shm", read_only=False)
    order = fork_order(replace(plan(SPEC), mounts=[shm]), SHELL, IDS, beforehand=True)
    assert order.pop("masked")[:2] == ["/proc/acpi", "/proc/asound"]
    assert order.pop("read_only")[0] == "/proc/bus"
    assert order == {
        "beforehand": True, "hostname": "s1",
        "own_network": True, "own_shm": True, "uid": 50000, "gid": 0, "groups": [0, 7],
    }  # fmt: skip


def test_an_id_of_the_node_is_never_given_to_a_fork() -> None:
    with pytest.raises(StartupFailed, match="not its own"):
        fork_order(plan(SPEC), replace(SHELL, uids=frozenset({0})), IDS, beforehand=True)


@pytest.mark.parametrize(
    "spec",
    [
        {"security": Security(profile="baseline")},
        {"security": Security(add_capabilities=("CHOWN",))},
        {"security": Security(seccomp="unconfined")},
        {"security": Security(apparmor="runtime-default")},
        {"network": "host"},
        {"devices": ("a.b/c=d",)},
    ],
)
def test_what_no_fork_can_be(spec: dict[str, object]) -> None:
    assert why_not(SPEC.model_copy(update=spec))
    assert not why_not(SPEC)


# --- What is read from outside ---


def test_a_fork_as_it_should_be() -> None:
    outside.check_confined(fork(), SHELL, ZYGOTE, own_network=True)
    outside.check_confined(fork({"net": SHELL.namespaces["net"]}), SHELL, ZYGOTE, own_network=False)


@pytest.mark.parametrize(
    "wrong",
    [
        fork(uids=frozenset({IDS.start + 50000, IDS.start})),
        fork(gids=frozenset({IDS.start + 1})),
        fork(groups=frozenset()),
        fork(capabilities=1 << 21),
        fork(no_new_privileges=False),
        fork(filters=1),
        fork(cgroups={"memory": "/"}),
        fork({"user": 1}),
        fork({"mnt": ZYGOTE.namespaces["mnt"]}),
        fork({"pid": ZYGOTE.namespaces["pid"]}),
        fork({"ipc": SHELL.namespaces["ipc"]}),
        fork({"uts": SHELL.namespaces["uts"]}),
        fork({"net": SHELL.namespaces["net"]}),
    ],
)
def test_a_fork_as_it_should_not_be(wrong: View) -> None:
    with pytest.raises(StartupFailed):
        outside.check_confined(wrong, SHELL, ZYGOTE, own_network=True)


def test_looking_at_a_process_that_has_ended() -> None:
    with pytest.raises(StartupFailed, match="ended"):
        outside.look(2**22)


def test_where_control_groups_are_mounted() -> None:
    hybrid = """\
30 23 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup systemd rw,xattr,name=systemd
33 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
"""
    assert outside.parse_mounts(hybrid) == {
        "cpu,cpuacct": Path("/sys/fs/cgroup/cpu,cpuacct"),
        "name=systemd": Path("/sys/fs/cgroup/systemd"),
        "": Path("/sys/fs/cgroup/unified"),
    }


# --- Ranges of ids ---


def test_ranges_do_not_overlap_whatever_is_in_use() -> None:
    config = Config(zygotes=ZygoteSettings(first_id=2**20, max=3))
    first = free_range(config, [])
    assert first == IdRange(2**20)
    assert free_range(config, [first]) == IdRange(2**20 + 2**16)
    across = IdRange(2**20 + 1000)
    assert free_range(config, [across]) == IdRange(2**20 + 2 * 2**16)
    with pytest.raises(EngineError, match=r"zygotes\.max"):
        free_range(config, [across, IdRange(2**20 + 2 * 2**16)])


@pytest.mark.parametrize("beforehand", [True, False])
def test_a_fork_for_which_a_job_waits_copies_no_pages_first(beforehand: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs an engine is left out; ``tests/contract/test_zygotes.py`` has that."""
    agent = vars(zygote)["agent"]  # its own, by its path
    leash, _ = socket.socketpair()
    for name in ("enter", "mount_own", "drop_privileges"):
        monkeypatch.setattr(zygote, name, lambda *_: None)
    told: list[bool] = []
    monkeypatch.setattr(agent, "connect", lambda _: SimpleNamespace(receive=lambda: ({}, [])))
    monkeypatch.setattr(agent, "serve", lambda _, prepared, *__: told.append(prepared.owns_pages))
    order = SimpleNamespace(beforehand=beforehand, leash=leash.detach())
    prepared = agent.Prepared("", None, None, {}, None)
    zygote.become_agent(None, order, prepared)  # type: ignore[arg-type]
    assert told == [beforehand]
