"""Does the Airflow in an image understand the Airflow of this worker?"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aircell.errors import IncompatibleImage


def wire_schema(facts: Mapping[str, Any]) -> str | None:
    """The version of Airflow's supervisor protocol that the image speaks, or None when it is the worker's own.

    ``facts`` are those of ``runner.describe``, if the sandbox is honest. Raises IncompatibleImage when the worker
    does not know that version.
    """
    theirs = str(facts.get("wire_schema"))
    if theirs == _own_wire_schema():
        return None
    from airflow.sdk.execution_time.schema import get_schema_version_migrator  # imports FastAPI: half a second

    try:
        return get_schema_version_migrator().resolve_version(theirs)
    except ValueError as error:
        raise IncompatibleImage(
            f"The image has Airflow {facts.get('airflow_core')} (task SDK {facts.get('task_sdk')}), whose supervisor "
            f"protocol {theirs} this worker does not know; its own is {_own_wire_schema()}.",
            hint="Build the image with the worker's version of Airflow, or upgrade the worker.",
        ) from error


def with_worker(error: IncompatibleImage) -> IncompatibleImage:
    """The same error, which was made inside the sandbox or knows only the image, naming the worker's versions too."""
    worker = (
        f"This worker has Airflow {importlib.metadata.version('apache-airflow-core')} "
        f"(task SDK {importlib.metadata.version('apache-airflow-task-sdk')}) on Python {platform.python_version()}."
    )
    return IncompatibleImage(f"{error.message} {worker}", hint=error.hint, sandbox=error.sandbox, detail=error.detail)


@functools.cache
def _own_wire_schema() -> str:
    from airflow.sdk.execution_time import schema

    version: str = json.loads(Path(schema.__file__).with_name("schema.json").read_text())["api_version"]
    return version
