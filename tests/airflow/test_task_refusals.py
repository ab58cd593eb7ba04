"""Either in a sandbox or not at all: nothing of ours without the flag, and no task on the host with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.airflow.conftest import SANDBOXED
from tests.support.airflow_stack import AirflowStack, Json

pytestmark = pytest.mark.timeout(1500)

ENTRY_POINTS = ["aircell_airflow", "aircell_airflow.hook", "aircell_airflow.provider_info"]
LOOK = """
import json, sys
import airflow.sdk.execution_time.supervisor
import airflow.sdk.execution_time.callback_supervisor as callbacks
import airflow.dag_processing.manager as manager
from airflow.sdk.execution_time.coordinator import get_coordinator_manager
print(json.dumps({
    "coordinator": type(get_coordinator_manager().for_queue("any")).__name__,
    "callbacks": callbacks.CallbackSubprocess.start.__func__.__qualname__,
    "processor": manager.DagFileProcessorProcess.__name__,
    "ours": sorted(name for name in sys.modules if name.startswith("aircell")),
    "finders": [type(finder).__name__ for finder in sys.meta_path],
}))
"""


def look(home: Path, program: str = LOOK, **environment: str) -> Json:
    """What a process of an Airflow with these settings has loaded."""
    env = {"AIRFLOW_HOME": str(home), "PATH": "/usr/bin:/bin", **environment}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: Json = json.loads(done.stdout.splitlines()[-1])
    return found


def test_process_leaves_airflow_untouched(tmp_path: Path) -> None:
    found = look(tmp_path)
    assert found["ours"] == ENTRY_POINTS
    assert found["coordinator"] == "_PythonCoordinator"
    assert found["callbacks"] == "CallbackSubprocess.start"
    assert found["processor"] == "DagFileProcessorProcess"
    assert "PatchOnImport" not in found["finders"]


def test_each_flag_changes_its_own_part(tmp_path: Path) -> None:
    tasks = look(tmp_path, **SANDBOXED)
    assert tasks["coordinator"] == "SandboxCoordinator"
    assert tasks["callbacks"].startswith("sandbox_callbacks")
    assert tasks["processor"] == "DagFileProcessorProcess"
    parsing = look(tmp_path, AIRFLOW__SANDBOX_RUNTIME__DAG_PARSING_RUNTIME="cri")
    assert parsing["coordinator"] == "_PythonCoordinator"
    assert parsing["callbacks"] == "CallbackSubprocess.start"
    assert parsing["processor"] == "SandboxedFileProcessor"


def test_an_airflow_that_we_do_not_know_does_not_start(tmp_path: Path) -> None:
    program = """
import json, airflow
airflow.__version__ = "3.4.0"
import importlib, aircell_airflow.hook
try:
    importlib.reload(aircell_airflow.hook)
except RuntimeError as error:
    print(json.dumps(str(error)))
"""
    found = look(tmp_path, program, **SANDBOXED)
    assert "knows Airflow 3.3.x and not 3.4.0" in str(found)


def test_a_module_is_patched_although_its_first_import_failed(tmp_path: Path) -> None:
    (tmp_path / "victim.py").write_text("import os\nif 'READY' not in os.environ: raise OSError('not yet')\n")
    program = """
import json, os, sys
from aircell_airflow.hook import PatchOnImport
sys.meta_path.insert(0, PatchOnImport({"victim": lambda module: setattr(module, "patched", True)}))
try:
    import victim
except OSError:
    os.environ["READY"] = "1"
import victim
print(json.dumps({"patched": victim.patched}))
"""
    assert look(tmp_path, program, PYTHONPATH=str(tmp_path)) == {"patched": True}


# --- on a whole Airflow -------------------------------------------------------------------------------------------


def errors(stack: AirflowStack, run_id: str, dag_id: str = "plain", task_id: str = "tells") -> list[Json]:
    instance = stack.task_instance(dag_id, run_id, task_id)
    assert instance["state"] == "failed"
    lines = stack.log(dag_id, run_id, task_id, instance["try_number"])
    assert [line for line in lines if line["logger"] != "aircell"] == [], "something of the task ran"
    return [line for line in lines if line["level"] == "error"]


def test_a_broken_installation_fails_each_task(
    sandboxed_stack: AirflowStack, worker_environment: dict[str, str], tmp_path: Path
) -> None:
    broken = tmp_path / "aircell"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('this installation is broken')\n")
    stack = sandboxed_stack
    with stack.scheduler({**worker_environment, **SANDBOXED, "PYTHONPATH": str(tmp_path)}):
        stack.trigger("plain", "broken")
        assert stack.wait_for_run("plain", "broken") == "failed"
    (error,) = errors(stack, "broken")
    assert "cannot be loaded on this worker" in error["event"]
    assert "this installation is broken" in error["event"]
    assert stack.task_instance("plain", "broken", "tells")["try_number"] == 2


def test_without_aircelld_and_with_a_queue_of_another_coordinator(
    sandboxed_stack: AirflowStack, worker_environment: dict[str, str]
) -> None:
    stack = sandboxed_stack
    elsewhere = {"classpath": "airflow.sdk.execution_time.coordinator._PythonCoordinator"}
    refusing = {
        "AIRFLOW__SANDBOX_RUNTIME__SOCKET_PATH": "/nowhere/aircelld.sock",
        "AIRFLOW__SDK__COORDINATORS": json.dumps({"on-the-host": elsewhere}),
        "AIRFLOW__SDK__QUEUE_TO_COORDINATOR": json.dumps({"another-queue": "on-the-host"}),
    }
    with stack.scheduler({**worker_environment, **SANDBOXED, **refusing}):
        stack.trigger("queues", "refused")
        assert stack.wait_for_run("queues", "refused") == "failed"
    (down,) = errors(stack, "refused", "queues", "default")
    assert down["kind"] == "DaemonUnavailable"
    assert down["event"].startswith("Aircell or the container engine failed, not the task")
    assert "/nowhere/aircelld.sock" in down["event"]
    assert "Start `aircelld`" in down["hint"]
    (mapped,) = errors(stack, "refused", "queues", "other")
    assert "'another-queue'" in mapped["event"]
    assert "'on-the-host'" in mapped["event"]


# --- callbacks that the executor runs -----------------------------------------------------------------------------

CALL = """
import json, sys, uuid
from airflow.executors.base_executor import BaseExecutor
from airflow.executors.workloads import ExecuteCallback
from airflow.executors.workloads.base import BundleInfo
from airflow.executors.workloads.callback import CallbackDTO
path, kwargs, log_path = json.loads(sys.argv[1])
callback = CallbackDTO(id=str(uuid.uuid4()), fetch_method="import_path", data={"path": path, "kwargs": kwargs})
workload = ExecuteCallback(
    callback=callback, dag_rel_path="plain.py", bundle_info=BundleInfo(name="local"), token="none", log_path=log_path
)
try:
    BaseExecutor.run_workload(workload, server="http://127.0.0.1:9/execution/")
except RuntimeError as error:
    print("RAISED", error)
"""


def call(stack: AirflowStack, environment: dict[str, str], path: str, **kwargs: str) -> tuple[str, list[Json]]:
    """Runs an executor callback as a worker would: what it printed, and the callback's log."""
    log = f"{path}.log"
    argv = [sys.executable, "-c", CALL, json.dumps([path, kwargs, log])]
    env = {**stack.process_environment(), **environment, **SANDBOXED}
    done = subprocess.run(argv, env=env, cwd=stack.home, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, [json.loads(line) for line in (stack.home / "logs" / log).read_text().splitlines()]


def test_an_executor_callback_runs_in_a_sandbox(
    sandboxed_stack: AirflowStack, worker_environment: dict[str, str]
) -> None:
    printed, lines = call(sandboxed_stack, worker_environment, "callbacks_of_tests.notify", text="late")
    assert "RAISED" not in printed
    (ready,) = [line for line in lines if line["event"] == "Sandbox ready"]
    (said,) = [line["event"] for line in lines if line["logger"] == "task.stdout"]
    requested = lines[0]["sandbox"]
    assert ready["airflow_core"] == "3.3.2"
    assert said.startswith("late on ")
    assert said.endswith(" with a variable of the environment")
    assert requested.startswith("callback-")


def test_a_failing_executor_callback_fails(sandboxed_stack: AirflowStack, worker_environment: dict[str, str]) -> None:
    printed, lines = call(sandboxed_stack, worker_environment, "callbacks_of_tests.fails")
    assert "RAISED Callback subprocess exited with code 1" in printed
    assert any("a callback that fails" in json.dumps(line) for line in lines)
