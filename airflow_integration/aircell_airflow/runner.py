"""What the agent runs in a sandbox: Airflow's own child entry points, on the descriptors that it is given.

This file is read as text on the worker and loaded by the agent in the sandbox: standard library only when it is
imported, and nothing of ours, ever. See ``docs/protocol.md`` for ``preload``, ``describe`` and ``run``.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from socket import socket
from typing import Any

PYTHON = (3, 10)
TASK_SDK = (1, 3)
"""The oldest that can work: Airflow 3.3 is the first whose supervisor protocol has versions."""
PRELOADED = (
    "airflow.sdk.execution_time.task_runner",
    "airflow.sdk.execution_time.supervisor",
    "airflow.dag_processing.dagbag",
    "airflow.dag_processing.processor",
)
"""Without which there is no job. Tasks and parses import the same, so that a sandbox can serve either."""
USUAL = (
    "airflow.dag_processing.bundles.local",
    "airflow.models.dagwarning",
    "airflow.providers.standard.operators.bash",
    "airflow.providers.standard.operators.empty",
    "airflow.providers.standard.operators.trigger_dagrun",
    "airflow.providers.standard.sensors.external_task",
    "airflow.sdk._shared.logging.factory",
    "airflow.sdk._shared.logging.remote",
    "airflow.sdk.definitions.asset.metadata",
    "airflow.sdk.definitions.decorators",
    "airflow.timetables.trigger",
    "airflow.utils.dag_version_inflation_checker",
    "airflow.version",
    "encodings.idna",
    "jinja2.ext",
    "setproctitle",
)
"""What Airflow imports by and by in nearly every job, as far as an image has it."""


def preload() -> None:
    """Imports what every job needs."""
    if _incompatible():
        return  # describe() says why, better than an ImportError would
    for name in PRELOADED:
        importlib.import_module(name)
    for name in USUAL:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def describe() -> dict[str, Any]:
    """The versions in this image. Raises RuntimeError (message, newline, hint) when it cannot run any job."""
    if reason := _incompatible():
        raise RuntimeError(reason)
    from airflow.sdk.execution_time import schema

    wire = json.loads(Path(schema.__file__).with_name("schema.json").read_text())
    return {
        "python": platform.python_version(),
        "airflow_core": importlib.metadata.version("apache-airflow-core"),
        "task_sdk": importlib.metadata.version("apache-airflow-task-sdk"),
        "wire_schema": wire["api_version"],
    }


def _incompatible() -> str:
    """Why this image cannot run a job: message, newline, hint; empty when it can."""
    where = f"{sys.executable} (Python {platform.python_version()})"
    if sys.version_info < PYTHON:
        wanted = ".".join(map(str, PYTHON))
        return (
            f"The image's interpreter is {where}; Airflow 3.3 needs Python {wanted} or newer.\n"
            f"Build the image on Python {wanted} or newer, or set `python:` to such an interpreter in it."
        )
    versions = {}
    for name in ("apache-airflow-core", "apache-airflow-task-sdk"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return (
                f"The image has no {name} for {where}.\n"
                "Install apache-airflow-core and apache-airflow-task-sdk in it, best in the worker's versions, or set "
                "`python:` to the interpreter that has them."
            )
    sdk = versions["apache-airflow-task-sdk"]
    if tuple(int(part) for part in sdk.split(".")[:2]) < TASK_SDK:
        return (
            f"The image has Airflow {versions['apache-airflow-core']} (task SDK {sdk}), which is too old: 3.3 "
            "(task SDK 1.3) is the first that can run in a sandbox.\n"
            "Build the image with the worker's version of Airflow."
        )
    return ""


def run(requests: int, stdout: int, stderr: int, logs: int, args: Mapping[str, Any]) -> None:
    """Becomes the job that ``args["entry"]`` names: ``task``, ``parse`` or ``callback``. Does not return."""
    from airflow.sdk.execution_time import supervisor

    os.chdir(os.environ["HOME"])  # a task that writes where it starts must be able to
    target = ENTRIES[args["entry"]](args)
    supervisor._fork_main(socket(fileno=requests), socket(fileno=stdout), socket(fileno=stderr), logs, target)


def _task(args: Mapping[str, Any]) -> Callable[[], None]:
    from airflow.sdk.execution_time import supervisor

    return supervisor._subprocess_main


def _parse(args: Mapping[str, Any]) -> Callable[[], None]:
    from airflow.dag_processing import processor

    return processor._parse_file_entrypoint


def _callback(args: Mapping[str, Any]) -> Callable[[], None]:
    """As the closure in ``CallbackSubprocess.start``, whose variables come in ``args`` here."""

    def target() -> None:
        import structlog
        from airflow.dag_processing.bundles.manager import DagBundlesManager
        from airflow.sdk.execution_time import callback_supervisor, comms, task_runner

        log = structlog.get_logger(logger_name="callback_runner")
        task_runner.SUPERVISOR_COMMS = comms.CommsDecoder[
            comms.ToTask, callback_supervisor.CallbackToSupervisor  # type: ignore[assignment]
        ](log=log)
        bundle = DagBundlesManager().get_bundle(  # type: ignore[no-untyped-call]
            args["bundle_name"], args["bundle_version"]
        )
        bundle.initialize()
        sys.path.append(str(bundle.path))
        succeeded, error = callback_supervisor.execute_callback(
            callback_path=args["callback_path"],
            callback_kwargs=args["callback_kwargs"],
            dag_rel_path=args["dag_rel_path"],
            bundle_path=bundle.path,
            log=log,
        )
        if not succeeded:
            log.error("Callback failed", error=error)
            sys.exit(1)

    return target


ENTRIES: Mapping[str, Callable[[Mapping[str, Any]], Callable[[], None]]] = {
    "task": _task,
    "parse": _parse,
    "callback": _callback,
}
