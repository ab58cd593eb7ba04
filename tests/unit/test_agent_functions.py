"""The agent's pure parts."""

from __future__ import annotations

import ast
import signal
from pathlib import Path

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
