"""One question, one answer: in what sandbox does this task run, or this file get parsed?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aircell.errors import InvalidSpec
from aircell.spec import SandboxSpec
from aircell_airflow import metadata, resolve, settings
from aircell_airflow.resolve import Fields, Kind

IMAGE_HOOK = "get_sandbox_image"
SPEC_HOOK = "sandbox_mutation_hook"


@dataclass(frozen=True)
class Resolved:
    """The answer, with where each value came from."""

    backend: str
    """``process`` when the feature flag leaves this kind of workload to stock Airflow."""
    spec: SandboxSpec
    sources: Mapping[str, str]
    """``backend`` and the dotted name of every value of the spec -> the place that says it."""


def plan(
    kind: Kind,
    *,
    file: Path,
    bundle_root: Path,
    context: Mapping[str, Any],
    executor_config: Mapping[str, Any] | None = None,
) -> Resolved:
    """Resolves the sandbox of a task of, or of the parsing of, the DAG file ``file``.

    ``context`` is for the hooks: what the caller knows (dag_id, task_id, run_id, queue ...). Raises InvalidSpec with
    the place (file, line, key, or section and option, or hook) of what is wrong.
    """
    configured = settings.load(kind)
    layers = [configured.fields, *metadata.read(file, bundle_root, kind), _executor_config(executor_config)]
    spec, sources = resolve.build(layers)
    known = {**context, "kind": kind, "file": str(file), "bundle_root": str(bundle_root)}
    spec, sources = _image_hook(spec, sources, known)
    spec, sources = _spec_hook(spec, sources, known)
    return Resolved(configured.runtime, spec, {"backend": configured.runtime_source, **sources})


def _executor_config(config: Mapping[str, Any] | None) -> Fields:
    said = (config or {}).get("sandbox")
    if said is None:
        return {}
    if not isinstance(said, Mapping):
        raise InvalidSpec(f"executor_config: sandbox: must be a mapping, not {said!r:.60}")
    return resolve.say(said, lambda path: f"executor_config['sandbox'] of the task: {path[0]}")


def _image_hook(
    spec: SandboxSpec, sources: dict[str, str], context: Mapping[str, Any]
) -> tuple[SandboxSpec, dict[str, str]]:
    hook = settings.hook(IMAGE_HOOK)
    if hook is None:
        return spec, sources
    image = _call(IMAGE_HOOK, hook, spec.image, context)
    if not isinstance(image, str) or not image:
        raise InvalidSpec(f"{IMAGE_HOOK} in airflow_local_settings returned {image!r:.60} and not an image")
    return _adopt(IMAGE_HOOK, spec, spec.model_copy(update={"image": image}), sources)


def _spec_hook(
    spec: SandboxSpec, sources: dict[str, str], context: Mapping[str, Any]
) -> tuple[SandboxSpec, dict[str, str]]:
    hook = settings.hook(SPEC_HOOK)
    if hook is None:
        return spec, sources
    result = _call(SPEC_HOOK, hook, spec, context)
    if not isinstance(result, SandboxSpec):
        raise InvalidSpec(f"{SPEC_HOOK} in airflow_local_settings returned {result!r:.60} and not a SandboxSpec")
    return _adopt(SPEC_HOOK, spec, result, sources)


def _call(name: str, hook: Callable[..., Any], *args: Any) -> Any:
    try:
        return hook(*args)
    except Exception as error:
        raise InvalidSpec(f"{name} in airflow_local_settings failed: {type(error).__name__}: {error}") from error


def _adopt(
    name: str, before: SandboxSpec, after: SandboxSpec, sources: Mapping[str, str]
) -> tuple[SandboxSpec, dict[str, str]]:
    try:
        # A hook may have used model_copy(update=...), which validates nothing.
        checked = SandboxSpec.model_validate(after.model_dump())
    except ValueError as error:
        raise InvalidSpec(f"{name} in airflow_local_settings made an invalid spec: {error}") from error
    return checked, resolve.changed(before, checked, f"airflow_local_settings.{name}", sources)
