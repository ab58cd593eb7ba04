"""The agent's pure parts."""

from __future__ import annotations

import ast
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from aircell import agent


def test_an_old_python_can_parse_it() -> None:
    ast.parse(Path(agent.__file__).read_text(), feature_version=(3, 6))


def test_it_imports_the_standard_library_only() -> None:
    tree = ast.parse(Path(agent.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name for name in imported if "aircell" in name} == set()


@pytest.mark.parametrize("version", [(3, 9, 0), (3, 14, 1), (4, 0, 0)])
def test_new_enough(version: tuple[int, ...]) -> None:
    agent.check_interpreter(version)


@pytest.mark.parametrize("version", [(3, 8, 20), (3, 6, 0), (2, 7, 18)])
def test_too_old(version: tuple[int, ...]) -> None:
    with pytest.raises(agent.CannotServe, match=rf"^Python {version[0]}\.{version[1]} in the image; 3\.9 or newer"):
        agent.check_interpreter(version)


def test_it_refuses_to_be_any_process_but_the_first() -> None:
    with pytest.raises(agent.CannotServe, match="it must be process 1"):
        agent.check_place()


EXITED, KILLED = 3 << 8, int(signal.SIGKILL)


@pytest.mark.parametrize(
    ("status", "killed", "cause", "expected"),
    [
        (EXITED, 0, "", {"code": 3, "signal": None, "oom_killed": False, "reason": ""}),
        (
            EXITED,
            0,
            "the worker sent SIGTERM",
            {"code": 3, "signal": None, "oom_killed": False, "reason": "Ended after the worker sent SIGTERM."},
        ),
        (
            KILLED,
            0,
            "",
            {
                "code": None,
                "signal": 9,
                "oom_killed": False,
                "reason": "Ended by SIGKILL, which came from inside the sandbox or from the node.",
            },
        ),
        (
            40,  # a real-time signal
            0,
            "",
            {
                "code": None,
                "signal": 40,
                "oom_killed": False,
                "reason": "Ended by signal 40, which came from inside the sandbox or from the node.",
            },
        ),
        (
            KILLED,
            2,
            "",
            {
                "code": None,
                "signal": 9,
                "oom_killed": True,
                "reason": "The kernel killed a process of the sandbox: the memory limit of 64 MiB was reached.",
            },
        ),
    ],
)
def test_describe_exit(
    status: int,
    killed: int,
    cause: str,
    expected: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "limit").write_text("67108864\n")
    monkeypatch.setattr(agent, "MEMORY_FILES", (("", str(tmp_path / "limit")),))
    assert agent.describe_exit(status, killed, cause) == expected


@pytest.mark.parametrize(
    "text",
    [
        "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n",  # memory.events, cgroup v2
        "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",  # memory.oom_control, cgroup v1
    ],
)
def test_oom_kills(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "events").write_text(text)
    monkeypatch.setattr(agent, "MEMORY_FILES", (("/nowhere", ""), (str(tmp_path / "events"), "")))
    assert agent.oom_kills() == 2


def test_oom_kills_when_no_file_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "MEMORY_FILES", (("/nowhere", "/nowhere"),))
    assert agent.oom_kills() == 0
    assert agent.memory_limit() == "unknown"


def faults_of_touching_all_modules(*, after_own_pages: bool) -> int:
    """Pages that a new fork has to copy when it uses what its modules hold."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        news, _ = socket.socketpair()
        if after_own_pages:
            agent.own_pages_until(news)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for module in list(sys.modules.values()):
            for _ in list(vars(module).values()):
                pass
        os.write(writer, str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as file:
        return int(file.read())


def test_a_waiting_fork_takes_the_pages_that_a_job_would_have_to_wait_for() -> None:
    plain = faults_of_touching_all_modules(after_own_pages=False)
    assert faults_of_touching_all_modules(after_own_pages=True) < plain / 4


def test_a_fork_whose_job_is_there_takes_no_pages_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Untouchable:
        @property
        def __dict__(self) -> NoReturn:  # type: ignore[override]
            raise AssertionError("touched")

    monkeypatch.setattr(sys, "modules", {"untouchable": Untouchable()})
    news, worker = socket.socketpair()
    with news, worker:
        with pytest.raises(AssertionError, match="touched"):
            agent.own_pages_until(news)
        worker.send(b"job")
        agent.own_pages_until(news)


@pytest.mark.parametrize("owns_pages", [True, False])
def test_a_waiting_fork_takes_pages_where_that_is_wanted(owns_pages: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = agent.Prepared("/nowhere", None, None, {}, lambda _: None)
    prepared.owns_pages = owns_pages
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setattr(agent, "own_pages_until", lambda _: ours.send(b"taken"))
        child = os.fork()
        if child == 0:
            theirs.close()
            monkeypatch.setattr(agent.Frames, "receive", lambda _: os._exit(0))
            agent.run_child(agent.Frames(ours), prepared, None)
        ours.close()
        assert theirs.recv(16) == (b"taken" if owns_pages else b"")
        os.waitpid(child, 0)
