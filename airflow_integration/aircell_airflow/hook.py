"""Entry point of group ``airflow.policy``: the only code of ours that a stock Airflow runs.

Airflow loads that group in ``airflow.settings.initialize``, which ``import airflow`` calls, so it is there before any
process can supervise a task, parse a file or run a callback. With both flags at ``process`` it reads them and is done.
Otherwise it sees to it that four modules of Airflow are changed as soon as they are imported:

* ``coordinator``: every queue gets our coordinator, or one that fails the task when ours cannot be had;
* ``supervisor``: what our coordinator needs is imported with it;
* ``callback_supervisor``: executor callbacks are user code too, so they get a sandbox as tasks do;
* ``dag_processing.manager``: each file is parsed in a sandbox.

Whatever is broken on our side surfaces when the workload starts and fails it; it never runs on the host instead.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from airflow import __version__
from airflow.configuration import conf

SUPPORTED = "3.3."
"""Airflow releases in which the modules below are known to be the only ways to user code."""
SECTION = "sandbox_runtime"
TASK_FLAG = "task_execution_runtime"
PARSE_FLAG = "dag_parsing_runtime"
PROCESS = "process"

Patch = Callable[[ModuleType], None]


def sandbox_tasks(module: ModuleType) -> None:
    """Makes every queue's coordinator ours. ``module`` is ``airflow.sdk.execution_time.coordinator``."""
    module.CoordinatorManager.for_queue = _coordinator_for_queue


def _coordinator_for_queue(manager: Any, queue: str) -> Any:
    refusal = importlib.import_module("aircell_airflow.refusal")
    if mapped := manager._queue_to_coordinator.get(queue):
        return refusal.mapped_queue(queue, mapped)
    try:
        return importlib.import_module("aircell_airflow.coordinator").SandboxCoordinator()
    except Exception as error:  # whatever it is, this task must say so in its own log
        return refusal.broken_installation(error)


def load_coordinator(_: ModuleType) -> None:
    """Imports what a task will need, before an executor forks its workers, each of which would import it by itself.

    Comes after ``airflow.sdk.execution_time.supervisor``. What goes wrong is told in the log of a task, see above.
    """
    with contextlib.suppress(Exception):
        importlib.import_module("aircell_airflow.coordinator")


def sandbox_callbacks(module: ModuleType) -> None:
    """Runs callbacks in sandboxes. ``module`` is ``airflow.sdk.execution_time.callback_supervisor``."""

    class CallbackSubprocess(module.CallbackSubprocess):  # type: ignore[name-defined, misc]
        @classmethod
        def start(cls, **kwargs: Any) -> Any:
            return importlib.import_module("aircell_airflow.callback").SandboxedCallback.start(**kwargs)

    module.CallbackSubprocess = CallbackSubprocess  # type: ignore[attr-defined]


def sandbox_parsing(module: ModuleType) -> None:
    """Parses files in sandboxes. ``module`` is ``airflow.dag_processing.manager``."""
    importlib.import_module("aircell_airflow.processor").install(module)


class PatchOnImport(importlib.abc.MetaPathFinder):
    """Calls a function with each of certain modules right after its code has run."""

    def __init__(self, patches: Mapping[str, Patch]) -> None:
        self._patches = patches

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        patch = self._patches.get(name)
        if patch is None:
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in others if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            patch(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Reads the two flags and installs what they ask for. Raises RuntimeError for an Airflow that is not known."""
    patches: dict[str, Patch] = {}
    if conf.get(SECTION, TASK_FLAG, fallback=PROCESS) != PROCESS:
        patches["airflow.sdk.execution_time.coordinator"] = sandbox_tasks
        patches["airflow.sdk.execution_time.supervisor"] = load_coordinator
        patches["airflow.sdk.execution_time.callback_supervisor"] = sandbox_callbacks
    if conf.get(SECTION, PARSE_FLAG, fallback=PROCESS) != PROCESS:
        patches["airflow.dag_processing.manager"] = sandbox_parsing
    if patches and not __version__.startswith(SUPPORTED):
        raise RuntimeError(
            f"[{SECTION}] asks for sandboxes, but this Aircell knows Airflow {SUPPORTED}x and not {__version__}: it "
            f"could not promise them. Install an Aircell for this Airflow, or set {TASK_FLAG} and {PARSE_FLAG} to "
            f"{PROCESS}."
        )
    for name in patches.keys() & sys.modules.keys():
        patches[name](sys.modules[name])
    if patches:
        sys.meta_path.insert(0, PatchOnImport(patches))


install()
