"""What the log of a task says of its sandbox."""

from __future__ import annotations

from typing import Any

import pytest

from aircell.errors import AircellError, ImageNotFound, RefusedByPolicy, SandboxLost
from aircell.status import ExitStatus
from aircell_airflow.launch_log import PROGRESS_SECONDS, LaunchLog


class Lines(list[tuple[str, str, dict[str, Any]]]):
    """A logger that keeps (level, text, fields)."""

    def __getattr__(self, level: str) -> Any:
        return lambda text, **fields: self.append((level, text, fields))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(lines: Lines, clock: Clock) -> LaunchLog:
    return LaunchLog(lines, clock)


def test_a_pull_is_mentioned_at_once_and_then_now_and_again(log: LaunchLog, lines: Lines, clock: Clock) -> None:
    for second in range(60):
        clock.now = 100.0 + second / 2
        log.event({"event": "pulling", "image": "team/etl:7", "done": second * 2**20, "total": 60 * 2**20})
    assert [(fields["seconds"], fields["done"], fields["total"]) for _, _, fields in lines] == [
        (0.0, "unknown", "60.0 MiB"),
        (PROGRESS_SECONDS, "20.0 MiB", "60.0 MiB"),
        (2 * PROGRESS_SECONDS, "40.0 MiB", "60.0 MiB"),
    ]


def test_an_image_with_its_digest(log: LaunchLog, lines: Lines) -> None:
    for event in ({"event": "queued"}, {"event": "starting"}, {"event": "running", "kind": "zygote"}):
        log.event({**event, "at": 1.0})
    log.event({"event": "creating", "image": "team/etl:7", "digest": "team/etl@sha256:1"})
    fields = {"image": "team/etl:7", "digest": "team/etl@sha256:1", "logger": "aircell"}
    assert lines == [("info", "Sandbox image is on the node", fields)]


def test_a_sandbox_that_was_ready_and_what_it_lacks(log: LaunchLog, lines: Lines) -> None:
    log.event(
        {
            "event": "running",
            "kind": "warm",
            "ready": True,
            "digest": "sha256:1",
            "preload_errors": {"pandas": "no such module"},
        }
    )
    assert lines == [
        ("info", "A sandbox was ready", {"kind": "warm", "digest": "sha256:1", "logger": "aircell"}),
        ("warning", "Module pandas of `preload` was left out: no such module", {"logger": "aircell"}),
    ]


def test_facts_may_be_anything(log: LaunchLog, lines: Lines) -> None:
    log.ready({"python": "3" * 5000, "logger": "root", "seconds": {}, "event": "lie"})
    ((_, text, fields),) = lines
    assert text == "Sandbox ready"
    assert fields["logger"] == "aircell"
    assert fields["seconds"] == 0.0
    assert len(fields["python"]) == 100
    assert "event" not in fields


@pytest.mark.parametrize(
    ("error", "begins"),
    [
        (RefusedByPolicy("no root", hint="ask"), "Refused, by the node's policy or by the configuration: no root"),
        (ImageNotFound("no such image"), "The image failed, or what is in it: no such image"),
        (SandboxLost("gone"), "Aircell or the container engine failed, not the task: gone"),
    ],
)
def test_three_kinds_of_failure(log: LaunchLog, lines: Lines, error: AircellError, begins: str) -> None:
    log.failed(error)
    ((level, text, fields),) = lines
    assert (level, text) == ("error", begins)
    assert (fields["hint"], fields["kind"]) == (error.hint, type(error).__name__)


def test_evidence_comes_before_the_verdict(log: LaunchLog, lines: Lines) -> None:
    log.failed(ImageNotFound("none", detail="first\nsecond"))
    assert [(text, fields["logger"]) for _, text, fields in lines] == [
        ("first", "aircell.container"),
        ("second", "aircell.container"),
        ("The image failed, or what is in it: none", "aircell"),
    ]


@pytest.mark.parametrize(
    ("exit", "said"),
    [
        (ExitStatus(code=0), []),
        (ExitStatus(code=3), []),
        (
            ExitStatus(signal=15, reason="Ended after the worker sent SIGTERM."),
            [("warning", "the worker sent SIGTERM")],
        ),
        (ExitStatus(signal=9, oom_killed=True, reason="memory limit of 1 GiB"), [("error", "memory limit of 1 GiB")]),
        (ExitStatus(signal=9), [("warning", "Ended by SIGKILL; the engine does not say who sent it.")]),
        (ExitStatus(signal=40), [("warning", "Ended by signal 40")]),
    ],
)
def test_the_end_says_what_a_code_does_not(
    log: LaunchLog, lines: Lines, exit: ExitStatus, said: list[tuple[str, str]]
) -> None:
    log.ended(exit)
    assert [level for level, _, _ in lines] == [level for level, _ in said]
    assert all(expected in text for (_, text, _), (_, expected) in zip(lines, said, strict=True))


def test_a_build_says_what_pip_said_last(log: LaunchLog, lines: Lines, clock: Clock) -> None:
    for second in range(15):
        clock.now = 100.0 + second
        log.event({"event": "building", "image": "made:1", "base": "team/etl:7", "line": f"line {second}"})
    assert [(text, fields["line"], fields["seconds"]) for _, text, fields in lines] == [
        ("Building the sandbox's image", "line 0", 0.0),
        ("Building the sandbox's image", "line 10", 10.0),
    ]
