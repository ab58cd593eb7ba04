"""The small parts of the CRI backend: logs, mounts, control groups, progress."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aircell.backends import mounts
from aircell.backends.base import PullProgress
from aircell.backends.cri import cgroups, log_format
from aircell.backends.cri.process import ContainerProcess
from aircell.backends.cri.progress import Meter
from aircell.errors import EngineError, InvalidSpec
from aircell.spec import Mount
from aircell_cri.containerd.content_pb2 import Status

# --- Logs ---

TIME = b"2026-11-22T17:25:43.469015000Z"


def test_log_lines_lose_their_framing() -> None:
    data = b"\n".join(
        [
            TIME + b" stdout F out",
            TIME + b" stderr P err",
            TIME + b" stderr F or",
            TIME + b" stdout F ",
            TIME + b" stdout P last",
        ]
    )
    assert log_format.strip_framing(data + b"\n") == b"out\nerror\n\nlast"


def test_tail_of_a_long_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"".join(TIME + b" stdout F line %06d\n" % number for number in range(10_000)))
    assert log_format.tail(log, 24) == "line 009998\nline 009999\n"
    assert log_format.tail(log, 2000).splitlines()[1:] == [f"line {n:06}" for n in range(9834, 10_000)]


def test_tail_of_no_log(tmp_path: Path) -> None:
    assert log_format.tail(tmp_path / "log", 100) == ""


# --- Mounts ---


def test_mount_points_of_mountinfo() -> None:
    text = (
        "22 28 0:20 / /sys rw,nosuid - sysfs sysfs rw\n"
        "36 35 98:0 /mnt1 /with\\040space\\134 rw - ext3 /dev/root rw,errors=continue\n"
    )
    assert mounts.mount_points(text) == ["/sys", "/with space\\"]


def test_read_only_mounts_bring_what_is_below_them(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    wanted = [
        Mount(source=str(tmp_path / "link"), target="/ro"),
        Mount(source=str(tmp_path), target="/rw", read_only=False),
    ]
    points = ["/", str(tmp_path), f"{tmp_path}/b/c", f"{tmp_path}/b", f"{tmp_path}-other/x"]
    assert mounts.with_read_only_submounts(wanted, points) == [
        wanted[0],
        Mount(source=f"{tmp_path}/b", target="/ro/b"),
        Mount(source=f"{tmp_path}/b/c", target="/ro/b/c"),
        wanted[1],
    ]


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"s1.*/missing.*mounted at /mnt.*path_map"):
        mounts.prepare([Mount(source=f"{tmp_path}/missing", target="/mnt")], "s1")


# --- Control groups ---


def test_which_version(tmp_path: Path) -> None:
    assert not cgroups.is_v2(tmp_path)
    (tmp_path / "cgroup.controllers").touch()
    assert cgroups.is_v2(tmp_path)


def test_pids_of_a_group_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"limit of 9 processes.*cgroup_root"):
        cgroups.limit_pids(tmp_path, "/aircell/s1", 9)


def test_memory_group_of_this_process() -> None:
    found = cgroups.memory_group(Path("/sys/fs/cgroup"), os.getpid())
    assert found is not None
    assert found.is_dir()


def test_memory_group_on_v2(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").touch()
    lines = "1:name=systemd:/elsewhere\n0::/aircell/abc\n"
    assert cgroups.parse_memory_group(tmp_path, lines) == tmp_path / "aircell" / "abc"


@pytest.mark.parametrize(
    ("file", "text", "kills"),
    [
        ("memory.events", "low 0\nhigh 0\nmax 5\noom 3\noom_kill 2\noom_group_kill 0\n", 2),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", 1),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n", 0),
        ("other", "oom_kill 1\n", 0),
    ],
)
def test_kills_for_memory(tmp_path: Path, file: str, text: str, kills: int) -> None:
    (tmp_path / file).write_text(text)
    assert cgroups.oom_kills(tmp_path) == kills


# --- Processes ---


def test_a_process_of_another_container_is_not_taken_for_ours() -> None:
    assert ContainerProcess.open(os.getpid(), "no-such-container", Path("/sys/fs/cgroup")) is None


def test_a_process_that_has_ended() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    assert ContainerProcess.open(pid, "", Path("/sys/fs/cgroup")) is None


def test_an_engine_that_names_no_process() -> None:
    assert ContainerProcess.open(0, "", Path("/sys/fs/cgroup")) is None


# --- Progress ---


def test_progress_adds_up_what_comes_and_goes() -> None:
    meter = Meter()
    assert meter.read([]) == PullProgress(0, 0)
    assert meter.read([Status(ref="a", offset=1, total=10)]) == PullProgress(1, 10)
    assert meter.read([Status(ref="a", offset=9, total=10), Status(ref="b", total=5)]) == PullProgress(9, 15)
    assert meter.read([Status(ref="b", offset=2, total=5)]) == PullProgress(12, 15)
    assert meter.read([]) == PullProgress(15, 15)


def test_what_an_earlier_pull_left_half_done_is_no_progress() -> None:
    meter = Meter()
    left = Status(ref="left", offset=7, total=10)
    assert (meter.read([left]), meter.busy) == (PullProgress(0, 0), True)
    assert meter.read([left, Status(ref="a", offset=1, total=5)]) == PullProgress(1, 5)
    assert (meter.read([left]), meter.busy) == (PullProgress(5, 5), False)
    resumed = Status(ref="left", offset=8, total=10)
    assert (meter.read([resumed]), meter.busy) == (PullProgress(13, 15), True)
