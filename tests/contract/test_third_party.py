"""A backend in a package of somebody else joins the contract with a few lines: ``examples/backend``."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.engines import CONTAINERDS, RunningContainerd

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.parametrize("engine", CONTAINERDS[:1], indirect=True, ids=lambda each: each.name),
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "backend"
SOME = "test_user_and_groups or test_devices or test_a_failing_registry or (test_nothing_is_left and few)"


async def test_the_suite_runs_on_anothers_backend(engine: RunningContainerd) -> None:
    """``devices`` are refused on this engine, which is as good as enforced."""
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", SOME]
    environment = {**os.environ, "ACME_FOLDER": str(engine.folder)}
    done = await asyncio.to_thread(
        subprocess.run, argv, cwd=EXAMPLE, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout
