"""The DAG files of the benchmarks: for each way of running a task one file, alike but for that."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from tests.support.images import reference

_DOCKER_OPERATOR = """
from airflow.providers.docker.operators.docker import DockerOperator
from airflow.sdk import DAG

with DAG({dag_id!r}, schedule=None):
    DockerOperator(
        task_id="t0", image={image!r}, command="true", docker_url={host!r}, network_mode="host",
        mount_tmp_dir=False, auto_remove="success",
    )
"""
BURST, BATCH = 50, 10
"""Tasks in a run of those DAGs."""
IMAGES = ("task", "demo-a")
"""That the DAGs name; the second has pandas."""

_EMPTY = """
from airflow.sdk import dag, task
{imports}
@dag(dag_id={dag_id!r}, schedule=None, max_active_tasks={tasks})
def flow():
    @task(executor={executor!r})
    def work() -> None: ...

    for number in range({tasks}):
        work.override(task_id=f"t{{number}}")()

flow()
"""


def write(folder: Path, way: str, executor: str) -> None:
    """The DAGs of one way: ``small_WAY``, ``heavy_WAY``, ``burst_WAY`` and ``batch_WAY``."""
    task, pandas = map(reference, IMAGES)
    for name, tasks in (("small", 1), ("burst", BURST), ("batch", BATCH)):
        _write(folder, f"{name}_{way}", executor, tasks, {"image": task})
    _write(folder, f"heavy_{way}", executor, 1, {"image": pandas, "preload": ["pandas"]}, "import pandas")


def write_container(folder: Path, way: str, executor: str) -> None:
    """``small_WAY``, for an executor that has no sandboxes."""
    _write(folder, f"small_{way}", executor, 1, {})


def write_docker_operator(folder: Path, way: str, host: str) -> None:
    """``small_WAY``: a stock task that starts the container."""
    dag_id = f"small_{way}"
    source = _DOCKER_OPERATOR.format(dag_id=dag_id, image=reference(IMAGES[0]), host=host)
    (folder / f"{dag_id}.py").write_text(source)


def _write(
    folder: Path, dag_id: str, executor: str, tasks: int, sandbox: Mapping[str, object], imports: str = ""
) -> None:
    """None of the tasks waits for another."""
    source = _EMPTY.format(dag_id=dag_id, executor=executor, tasks=tasks, imports=imports)
    (folder / f"{dag_id}.py").write_text(source)
    (folder / f"{dag_id}.yaml").write_text(yaml.safe_dump({"sandbox": dict(sandbox)}))
