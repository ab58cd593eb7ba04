"""The executors of the benchmarks' one scheduler: a task names the way in which it is to run, so that ways take turns.

Airflow imports each by a path: ``tests.bench.executors.cold`` is the one of the kind ``cold``.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from abc import abstractmethod
from typing import Any, ClassVar

from airflow.executors.local_executor import LocalExecutor, _run_worker

SOCKETS = "AIRCELL_BENCH_SOCKETS"
"""Environment variable: aircelld's socket by kind, as JSON."""


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


def path(way: str) -> str:
    """What ``[core] executor`` has for a way."""
    return f"{__name__}.{way}"


def __getattr__(kind: str) -> Any:
    if kind not in json.loads(os.environ.get(SOCKETS, "{}")):
        raise AttributeError(kind)
    return type(f"Sandboxed_{kind}", (Sandboxed,), {"kind": kind})
