"""The parts of residents that need no engine: orders, what a fork must be, users of an image, who comes from whom."""

from __future__ import annotations

import grp
import os
import pwd
import signal
import subprocess
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from aircell import agent, resident  # the resident has an agent of its own, by its path
from aircell.backends.cri import translate
from aircell.backends.cri.translate import Placement
from aircell.backends.kernel_paths import MASKED_PATHS, READONLY_PATHS
from aircell.daemon import outside
from aircell.daemon.outside import View
from aircell.daemon.resident import confined_spec, order
from aircell.errors import StartupFailed
from aircell.spec import Mount, Resources, SandboxSpec
from tests.unit.test_cri_translate import plan
from tests.unit.test_shape import shape
from tests.unit.test_zygote_parts import IDS, view

RESIDENT = view(100, capabilities=1 << 21, filters=1)


# --- What is ordered ---


def test_the_order_for_a_fork_with_namespaces() -> None:
    mounts = (Mount(source="/usr", target="/tmp/dags"), Mount(source="/etc", target="/srv"))
    resources = {"scratch": 4096, "shm": 8192}
    wanted = order(shape(seen=mounts, resources=resources, groups=(7,), network="pod"), IDS)
    assert wanted.pop("masked") == [path for path in MASKED_PATHS if path.startswith("/proc/")]
    assert wanted == {
        "namespaces": True,
        "own_network": False,
        "own_shm": True,
        "read_only": list(READONLY_PATHS),
        "sizes": {"/tmp": ",size=4096", "/dev/shm": ",size=8192"},
        "kept": ["/tmp/dags"],
        "user": "50000",
        "group": 0,
        "groups": [7],
    }


def test_a_fork_without_limits_has_the_usual_shared_memory() -> None:
    wanted = order(shape(), None)
    assert (wanted["namespaces"], wanted["own_network"]) == (False, True)
    assert wanted["sizes"] == {"/tmp": "", "/dev/shm": ",size=64m"}


def test_a_resident_hides_nothing_of_proc_from_itself_and_has_the_limits_of_its_forks() -> None:
    spec = confined_spec(SandboxSpec(image="i", resources=Resources(memory=4096), annotations={"a": "b"}, user="7"))
    assert (spec.user, spec.resources.memory, spec.annotations) == ("0", 4096, {"a": "b"})
    asked = translate.container_config(replace(plan(spec), ids=IDS, bare_proc=True), Placement("runc", "/x"))
    hidden = [*asked.linux.security_context.masked_paths, *asked.linux.security_context.readonly_paths]
    assert hidden
    assert not any(path.startswith("/proc/") for path in hidden)


# --- What is looked at ---


def fork(*shared: str, **changed: object) -> View:
    made = view(300, **changed)
    same = {kind: RESIDENT.namespaces[kind] for kind in ("user", *shared)}
    return replace(made, namespaces={**made.namespaces, **same})


def test_a_fork_as_it_should_be() -> None:
    outside.check_inmate(fork(), RESIDENT, own_network=True)
    outside.check_inmate(fork("net"), RESIDENT, own_network=False)
    outside.check_neighbour(fork("pid", "mnt"), RESIDENT)


@pytest.mark.parametrize(
    "wrong",
    [
        *(fork(kind) for kind in ("mnt", "pid", "ipc", "uts", "net")),
        fork(capabilities=1),
        fork(no_new_privileges=False),
        fork(filters=1),
        fork(cgroups={"memory": "/b"}),
        view(300),
    ],
)
def test_a_fork_as_it_should_not_be(wrong: View) -> None:
    with pytest.raises(StartupFailed):
        outside.check_inmate(wrong, RESIDENT, own_network=True)


@pytest.mark.parametrize("wrong", [view(300), fork("pid"), fork("mnt")])
def test_a_process_of_elsewhere_is_no_neighbour(wrong: View) -> None:
    with pytest.raises(StartupFailed):
        outside.check_neighbour(wrong, RESIDENT)


# --- In the fork ---


def ordered(**changed: Any) -> resident.Order:
    return resident.Order({**order(shape(), IDS), **changed}, [0])


@pytest.mark.parametrize(
    ("asked", "is_then"),
    [
        ({"user": "bin", "group": None}, (2, 2, [2, 7])),
        ({"user": "2", "group": None}, (2, 2, [2, 7])),
        ({"user": "2", "group": 0, "groups": [5]}, (2, 0, [0, 5, 7])),
        ({"user": "4711", "group": None}, (4711, 0, [0])),
        ({"user": "4711", "group": 3, "groups": [5]}, (4711, 3, [3, 5])),
    ],
)
def test_users_are_those_of_the_image(
    asked: dict[str, Any], is_then: tuple[int, int, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    users = [SimpleNamespace(pw_name="bin", pw_uid=2, pw_gid=2)]
    monkeypatch.setattr(pwd, "getpwall", lambda: users)
    monkeypatch.setattr(grp, "getgrall", lambda: [SimpleNamespace(gr_gid=7, gr_mem=["bin"])])
    wanted = ordered(**asked)
    wanted.find_user()
    assert (wanted.uid, wanted.gid, wanted.groups) == is_then


def test_a_user_that_the_image_does_not_have() -> None:
    with pytest.raises(resident.agent.CannotServe, match="no user nobody-here"):  # type: ignore[attr-defined]
        ordered(user="nobody-here").find_user()


def test_descendants_are_killed_to_the_last() -> None:
    argv = ["sh", "-c", "sh -c 'sleep 4321 & sleep 4321 & wait' & echo up; wait"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline() == b"up\n"
        deadline = time.monotonic() + 10
        while len(resident.descendants(child.pid)) < 3:
            assert time.monotonic() < deadline
        mine = resident.descendants(os.getpid())
        assert mine >= {child.pid, *resident.descendants(child.pid)}
        resident.send({child.pid, *resident.descendants(child.pid)}, signal.SIGKILL)
    assert resident.descendants(child.pid) == set()


def test_only_the_end_of_the_job_itself_is_put_down_to_a_limit_that_others_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = iter([1, 2, 2, 2])
    monkeypatch.setattr(agent, "oom_kills", lambda: next(counted))
    supervisor = agent.Supervisor.__new__(agent.Supervisor)
    supervisor.oom_kills = next(counted)
    for everyone, status, kills in (
        (resident.Descendants(), 0, 0),
        (resident.Descendants(), signal.SIGKILL, 1),
        (agent.Everyone(), 0, 1),
    ):
        supervisor.everyone = everyone
        assert supervisor.new_oom_kills(status) == kills
