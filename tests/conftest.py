"""Glue for the whole suite; fixtures live in ``tests/support`` and beside the tests that use them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator

import pytest

pytest_plugins = ["tests.support.node", "tests.contract.equivalence"]

CI = os.environ.get("CI") == "true"

_airflow_home = tempfile.TemporaryDirectory(prefix="aircell-airflow-")
os.environ["AIRFLOW_HOME"] = _airflow_home.name  # before anything imports airflow, which would write to ~/airflow


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For ``--dist loadgroup``: whatever shares a node or an engine runs in one process, one after the other."""
    for item in items:
        if not item.nodeid.startswith("tests/unit/"):
            group = "airflow" if item.nodeid.startswith("tests/airflow/") else "engines"
            item.add_marker(pytest.mark.xdist_group(group))


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
