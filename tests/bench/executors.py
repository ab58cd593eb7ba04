"""The executors of the benchmarks' one scheduler: a task names the way in which it is to run, so that ways take turns.

Airflow imports each by a path: ``tests.bench.executors.cold`` is the one of the kind ``cold``.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.configuration import conf
from airflow.executors.base_executor import BaseExecutor
from airflow.executors.local_executor import LocalExecutor, _run_worker

import aircell_airflow.coordinator  # noqa: F401 - as the hook does where Aircell is switched on for a scheduler

if TYPE_CHECKING:
    from airflow.executors.workloads import ExecutorWorkload

SOCKETS = "AIRCELL_BENCH_SOCKETS"
"""Environment variable: aircelld's socket by kind, as JSON."""
DOCKER_RUN = "AIRCELL_BENCH_DOCKER_RUN"
"""Environment variable: ``docker run`` with its options and the image, as JSON."""


class Prepared(LocalExecutor):
    """LocalExecutor whose workers do something before they begin."""

    @abstractmethod
    def prepare(self) -> None:
        """Runs in each worker's own process."""

    def _spawn_worker(self) -> None:
        process = multiprocessing.Process(target=self._work)
        process.start()
        assert process.pid
        self.workers[process.pid] = process

    def _work(self) -> None:
        self.prepare()
        _run_worker(
            logger_name=self.log.name,
            input=self.activity_queue,
            output=self.result_queue,  # type: ignore[arg-type]  # as LocalExecutor itself has it
            unread_messages=self._unread_messages,
            team_conf=self.conf,
        )


class Sandboxed(Prepared):
    """Aircell switched on, as ``task_execution_runtime = cri`` in airflow.cfg does for a whole scheduler."""

    kind: ClassVar[str]

    def prepare(self) -> None:
        switches = {"task_execution_runtime": "cri", "autostart": "False"}
        switches["socket_path"] = json.loads(os.environ[SOCKETS])[self.kind]
        os.environ.update({f"AIRFLOW__SANDBOX_RUNTIME__{name.upper()}": value for name, value in switches.items()})
        from aircell_airflow import hook

        hook.install()


class Container(Prepared):
    """A plain container of Docker for each task, with the command that KubernetesExecutor gives its pods."""

    def prepare(self) -> None:
        BaseExecutor.run_workload = staticmethod(_in_container)  # type: ignore[method-assign, assignment]


def _in_container(workload: ExecutorWorkload, **_: Any) -> None:
    argv = [*json.loads(os.environ[DOCKER_RUN]), "python", "-m", "airflow.sdk.execution_time.execute_workload"]
    options = [word for variable in _settings() for word in ("--env", variable)]
    at = argv.index("run") + 1
    subprocess.run([*argv[:at], *options, *argv[at:], "--json-string", workload.model_dump_json()], check=True)


def _settings() -> Iterator[str]:
    """Of this Airflow, what a task needs to find its DAG and the API server."""
    for section, option in (
        ("core", "execution_api_server_url"),
        ("core", "executor"),
        ("dag_processor", "dag_bundle_config_list"),
    ):
        yield f"AIRFLOW__{section.upper()}__{option.upper()}={conf.get(section, option)}"
    yield "AIRFLOW_HOME=/tmp/airflow"


def path(way: str) -> str:
    """What ``[core] executor`` has for a way."""
    return f"{__name__}.{way}"


def __getattr__(kind: str) -> Any:
    if kind not in json.loads(os.environ.get(SOCKETS, "{}")):
        raise AttributeError(kind)
    return type(f"Sandboxed_{kind}", (Sandboxed,), {"kind": kind})
