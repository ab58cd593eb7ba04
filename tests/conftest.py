"""Glue for the whole suite; fixtures live in ``tests/support`` and beside the tests that use them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]  # it has no types

pytest_plugins = ["tests.support.node", "tests.contract.equivalence"]

CI = os.environ.get("CI") == "true"

_airflow_home = tempfile.TemporaryDirectory(prefix="aircell-airflow-")
os.environ["AIRFLOW_HOME"] = _airflow_home.name  # before anything imports airflow, which would write to ~/airflow


class _Scheduler(LoadScopeScheduling):  # type: ignore[misc]  # of the same reason
    """Of two processes: what shares a node or an engine runs in one of them, one after the other."""

    def _split_scope(self, nodeid: str) -> str:
        folder = nodeid.split("/")[1]
        if folder == "unit":
            return nodeid.partition("::")[0]
        return "airflow" if folder == "airflow" else "engines"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Scheduler:
    return _Scheduler(config, log)


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In CI a skipped test is a failed one: a suite that skips its engine looks green and proves nothing."""
    if CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not accept: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_skipped(report)
    return report
