"""The DAG files of the benchmarks: for each way of running a task one file, alike but for that."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

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


def write(
    folder: Path, dag_id: str, *, executor: str, sandbox: Mapping[str, Any], tasks: int = 1, imports: str = ""
) -> None:
    """A DAG of so many empty tasks, none of which waits for another."""
    source = _EMPTY.format(dag_id=dag_id, executor=executor, tasks=tasks, imports=imports)
    (folder / f"{dag_id}.py").write_text(source)
    (folder / f"{dag_id}.yaml").write_text(yaml.safe_dump({"sandbox": dict(sandbox)}))
