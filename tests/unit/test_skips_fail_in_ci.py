"""The rule in ``tests/conftest.py``, in a suite of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

RULE = Path(__file__).resolve().parents[1] / "conftest.py"
SUITE = """
import pytest

def test_runs(): ...

@pytest.mark.xfail(strict=True)
def test_is_known_to_fail(): assert False

def test_skips_itself(): pytest.skip("no engine")

@pytest.mark.skip(reason="no engine")
def test_is_skipped(): ...
"""


@pytest.mark.parametrize(
    ("ci", "summary"),
    [("true", "1 failed, 1 passed, 1 xfailed, 1 error"), ("", "1 passed, 2 skipped, 1 xfailed")],
)
def test_a_skip_fails_in_ci_alone(tmp_path: Path, ci: str, summary: str) -> None:
    rule, plugins = re.subn(r"^pytest_plugins = .*\n", "", RULE.read_text(), flags=re.MULTILINE)
    assert plugins == 1
    (tmp_path / "conftest.py").write_text(rule)
    (tmp_path / "test_suite.py").write_text(SUITE)
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(argv, cwd=tmp_path, env={**os.environ, "CI": ci}, capture_output=True, text=True, check=False)
    assert summary in done.stdout
