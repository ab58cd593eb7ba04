"""Jobs that say when they begin, on the clock that a sandbox has in common with its node."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aircell_airflow.runner
from aircell.client import Client
from aircell.spec import Job, LaunchRequest, SandboxSpec
from tests.support.images import reference
from tests.support.jobs import text

_TELL_THE_TIME = """
def run(requests, stdout, stderr, logs, args):
    import os, time
    os.write(stdout, b"%d" % time.monotonic_ns())
"""
_WAIT = """
def run(requests, stdout, stderr, logs, args):
    import os
    os.read(requests, 1)
"""
_NOTHING_TO_PREPARE = """
def preload(): pass
def describe(): return {}
"""
RUNNERS = {
    "base": _NOTHING_TO_PREPARE,
    "task": Path(aircell_airflow.runner.__file__).read_text(),
}
"""By image: for a plain interpreter, and Airflow's task runner, which is imported before the job and then not run."""


def runner(image: str, *, waits: bool = False) -> str:
    """Says when it begins, or waits until the worker goes away."""
    return RUNNERS[image] + (_WAIT if waits else _TELL_THE_TIME)


def request(image: str, *, waits: bool = False) -> dict[str, Any]:
    """A launch of that runner, as a task: aircelld makes none beforehand of what is run by hand."""
    spec, job = SandboxSpec(image=reference(image)), Job(kind="runner", runner=runner(image, waits=waits))
    return LaunchRequest(spec=spec, job=job, role="task").model_dump(mode="json")


@dataclass(frozen=True)
class Launch:
    """One that has ended."""

    milliseconds: float
    """From the request to the first line of the runner."""
    asked: float
    """When it was requested, in seconds since the epoch."""
    sandbox: str


def first_line(client: Client, wanted: dict[str, Any]) -> Launch:
    """Launches it and waits for its end."""
    asked, began = time.time(), time.monotonic_ns()
    with client.launch(wanted) as sandbox:
        said = text(sandbox.stdout)
        sandbox.wait(60)
    return Launch((int(said) - began) / 1e6, asked, sandbox.id)
