"""An image from requirements: what a builder is given so that tasks of this Airflow run in it."""

from __future__ import annotations

import contextlib
import json
import platform
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata, resources
from pathlib import Path

from aircell import pip_request
from aircell.builders import Recipe
from aircell.errors import InvalidSpec
from aircell.reference import Reference

_SECRET = ("settings", "certificates")
NO_AIRFLOW = "none"


def base_image(python: str | None) -> str:
    """The image of that Python, as ``3.11``; by default of the one that runs this."""
    return f"docker.io/library/python:{python or '.'.join(platform.python_version_tuple()[:2])}-slim"


def airflow(version: str | None) -> tuple[str, ...]:
    """What a task needs of Airflow: of that version, or of the one installed here. Raises InvalidSpec."""
    if version == NO_AIRFLOW:
        return ()
    try:
        version = version or metadata.version("apache-airflow-core")
    except metadata.PackageNotFoundError as error:
        raise InvalidSpec(
            "there is no Airflow here whose version the image could have.",
            hint=f"Give --airflow the version of your workers, or `{NO_AIRFLOW}` for an image without it.",
        ) from error
    return (f"apache-airflow-core=={version}", "apache-airflow-task-sdk", "apache-airflow-providers-standard")


@contextlib.contextmanager
def recipe(tag: str, base: str, requirements: Sequence[str], python: str) -> Iterator[Recipe]:
    """For an image ``tag``: ``base``, whose interpreter ``python`` is to have the requirements. Valid in the context.

    Raises AircellError when pip's configuration here cannot be read.
    """
    request = pip_request.request(requirements, wheels_only=False)
    with tempfile.TemporaryDirectory(prefix="aircell-image-") as name:
        context, secret = Path(name, "context"), Path(name, "settings")
        context.mkdir()
        for file in ("installer.py", "Containerfile.requirements"):
            (context / file).write_text(resources.files("aircell").joinpath(file).read_text())
        (context / "request.json").write_text(json.dumps({k: v for k, v in request.items() if k not in _SECRET}))
        secret.write_text(json.dumps({each: request[each] for each in _SECRET}))
        yield Recipe(
            reference=str(Reference.parse(tag)),
            containerfile=context / "Containerfile.requirements",
            context=context,
            arguments={"BASE": base, "PYTHON": python},
            secrets={"settings": secret},
        )
