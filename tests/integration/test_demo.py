"""``just demo``, as a reader of the README runs it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(600)  # builds the demo's images when they are not cached
def test_the_demo_runs_both_dags_and_leaves_nothing() -> None:
    argv = [sys.executable, "-m", "demo", "--keep"]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        assert demo.stdout is not None
        shown = ""
        for line in demo.stdout:
            shown += line
            if address := re.search(r"UI: (http://\S+)", line):
                assert httpx.get(address[1]).is_success
                demo.send_signal(signal.SIGINT)
    assert demo.returncode == 0, shown
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    ran = {(dag, task, image, state) for dag, task, image, _, _, state in rows}
    old, new = "aircell/pandas:2.2.3", "aircell/pandas:3.1.1"
    assert ran == {
        ("sales_pandas_2", "(parse)", old, "parsed"),
        ("sales_pandas_2", "extract", old, "success"),
        ("sales_pandas_2", "per_month, try 1", old, "failed"),
        ("sales_pandas_2", "per_month, try 2", old, "success"),
        ("sales_pandas_2", "report", old, "success"),
        ("sales_pandas_3", "(parse)", new, "parsed"),
        ("sales_pandas_3", "extract", new, "success"),
        ("sales_pandas_3", "per_product", new, "success"),
        ("sales_pandas_3", "report", new, "success"),
    }
    assert len({sandbox for _, _, _, sandbox, _, _ in rows}) == len(rows), "each ran in a sandbox of its own"
    assert "XCom {'coffee': 84, 'tea': 170}" in shown
    (folder,) = re.findall(r"aircell ps --socket (\S+)/a\.sock", shown)
    assert not Path(folder).exists()
