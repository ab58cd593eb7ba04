"""Which configured DAG bundle a file lies in, for the command line."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from airflow.dag_processing.bundles.manager import DagBundlesManager


class Bundle(NamedTuple):
    """A bundle as it lies on this machine."""

    name: str
    path: Path


def holding(file: Path) -> Bundle:
    """The configured bundle whose folder is innermost around ``file``, or the file's own folder as a bundle."""
    manager = DagBundlesManager()  # type: ignore[no-untyped-call]
    found = [Bundle(bundle.name, Path(bundle.path)) for bundle in manager.get_all_dag_bundles()]
    around = [bundle for bundle in found if file.is_relative_to(bundle.path)]
    return max(around, key=lambda bundle: len(bundle.path.parts), default=Bundle("file", file.parent))
