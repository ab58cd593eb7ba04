"""The YAML beside a DAG file: what its author says about the sandbox. No Airflow.

``.aircell.yaml`` in each folder from the bundle's root down to the DAG file's, nearest last, then ``<stem>.yaml``
beside the DAG file (beside the archive, when the DAG file lies in a zip). See ``docs/metadata.md``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from aircell import requirements
from aircell.errors import InvalidSpec
from aircell_airflow import resolve, yaml_file
from aircell_airflow.resolve import Fields, Kind, Said, Where

FOLDER_FILE = ".aircell.yaml"
KEY = "sandbox"
_SECTIONS = ("task", "parse")
_FILE_KEY = "requirements_file"
_MAYBE_OURS = re.compile(rb"""^(?:\xef\xbb\xbf)?(?:---\s*)?(?:\{\s*)?["']?sandbox["']?\s*:""", re.MULTILINE)
"""A ``<stem>.yaml`` that matches nowhere cannot have our top-level key: it is somebody else's and is not parsed."""
_STRINGS = frozenset({"env", "environment", "labels", "annotations"})


def read(file: Path, bundle_root: Path, kind: Kind) -> list[Fields]:
    """What the metadata files of a DAG file say, lowest first.

    Raises InvalidSpec, naming file, line and key, for anything that is wrong in any of them, in the section of the
    other kind too: the author is to learn of it when the file is parsed, not when a task first runs.
    """
    layers: list[Fields] = []
    for path in candidates(file, bundle_root):
        sandbox = _sandbox(path, bundle_root)
        if sandbox is not None:
            layers += _layers(sandbox, bundle_root, kind)
    return layers


def candidates(file: Path, bundle_root: Path) -> list[Path]:
    """The paths at which metadata of a DAG file may lie, lowest first. Raises InvalidSpec for a file elsewhere."""
    if not file.is_relative_to(bundle_root) or ".." in file.parts:
        raise InvalidSpec(f"{file} does not lie in the bundle {bundle_root}")
    inside = [parent for parent in file.parents if parent != bundle_root and parent.is_relative_to(bundle_root)]
    archive = next((parent for parent in inside if parent.is_file()), file)
    folders = [folder for folder in archive.parents if folder.is_relative_to(bundle_root)]
    return [folder / FOLDER_FILE for folder in reversed(folders)] + [archive.with_suffix(".yaml")]


def _sandbox(path: Path, bundle_root: Path) -> yaml_file.Located | None:
    """What a file has under our key; None when there is no such file or it is somebody else's."""
    content = yaml_file.read(path, bundle_root)
    ours = path.name == FOLDER_FILE
    if content is None or not (ours or _MAYBE_OURS.search(content)):
        return None
    document = yaml_file.compose(path, content)
    if document is None:
        return None
    pairs = document.value if isinstance(document, yaml.MappingNode) else []
    if ours and [key.value for key, _ in pairs] != [KEY]:
        line = next((key.start_mark.line for key, _ in pairs if key.value != KEY), document.start_mark.line) + 1
        raise InvalidSpec(f"{path}:{line}: must be a mapping with the one key `{KEY}:`")
    return next((yaml_file.locate(path, node, KEY, strings=_STRINGS) for key, node in pairs if key.value == KEY), None)


def _layers(sandbox: yaml_file.Located, bundle_root: Path, kind: Kind) -> list[Fields]:
    common = dict(_mapping(sandbox.value, KEY, sandbox.where()))
    parts = {name: _mapping(common.pop(name), name, sandbox.where((name,))) for name in _SECTIONS if name in common}
    said = _say(common, sandbox.file, bundle_root, sandbox.where)
    said_of = {
        name: _say(part, sandbox.file, bundle_root, lambda path, name=name: sandbox.where((name, *path)))  # type: ignore[misc]
        for name, part in parts.items()
    }
    for layer in (said, *said_of.values()):
        resolve.check(layer)
    return [said, said_of[kind]] if kind in said_of else [said]


def _say(values: Mapping[str, Any], file: Path, bundle_root: Path, where: Where) -> Fields:
    """What a mapping of the file says, with the requirements that it keeps in another file."""
    if _FILE_KEY not in values:
        return resolve.say(values, where)
    place = f"{where((_FILE_KEY,))}: {_FILE_KEY}"
    if "requirements" in values:
        raise InvalidSpec(f"{place}: the same as requirements, which is set too")
    name = values[_FILE_KEY]
    if not isinstance(name, str) or not name:
        raise InvalidSpec(f"{place}: must be the path of a file in the bundle, not {name!r:.60}")
    rest = {key: value for key, value in values.items() if key != _FILE_KEY}
    return resolve.say(rest, where) | _requirements(file.parent / name, bundle_root, place)


def _requirements(path: Path, bundle_root: Path, place: str) -> Fields:
    if not Path(os.path.normpath(path)).is_relative_to(bundle_root):
        raise InvalidSpec(f"{place}: {path} lies outside of the bundle {bundle_root}")
    content = yaml_file.read(path, bundle_root)
    if content is None:
        raise InvalidSpec(f"{place}: there is no file {path}")
    if len(content) > yaml_file.MAX_BYTES:
        raise InvalidSpec(f"{place}: {path} is over the limit of {yaml_file.MAX_BYTES} bytes")
    try:
        lines = requirements.read(content.decode())
    except UnicodeDecodeError as error:
        raise InvalidSpec(f"{place}: {path} is not UTF-8") from error
    for number, line in lines:
        if problem := requirements.problem(line):
            raise InvalidSpec(f"{path}:{number}: {problem}")
    return {("requirements",): Said([line for _, line in lines], str(path))}


def _mapping(value: Any, name: str, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidSpec(f"{where}: {name}: must be a mapping, not {value!r:.60}")
    return value
