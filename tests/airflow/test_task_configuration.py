"""A task's sandbox is the one that the YAML beside its DAG file and its executor_config ask for."""

from __future__ import annotations

import pytest

from tests.support.airflow_stack import AirflowStack

pytestmark = pytest.mark.timeout(1500)  # the fixture runs the parity suite first


def test_yaml_and_executor_config_reach_the_sandbox(sandboxed_stack: AirflowStack) -> None:
    sandboxed_stack.trigger("configured", "once")
    assert sandboxed_stack.wait_for_run("configured", "once") == "success"
    seen = sandboxed_stack.xcoms("configured", "once", "look")["return_value"]
    assert seen == {"uid": 50123, "FROM_YAML": "yaml", "FROM_EXECUTOR_CONFIG": "executor_config"}
