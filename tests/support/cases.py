"""DAG files that differ in nothing but their sandbox: each is ``dags/case.py.txt`` with a YAML of its own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import yaml

from tests.support.images import reference

PRIVATE = "registry.test/private:latest"
"""An image for which one needs the node's credentials ``team``."""
CASES: Mapping[str, Mapping[str, object]] = {
    "plain": {},
    "other_release": {"image": reference("task-3.3.1")},
    "too_old": {"image": reference("task-old")},
    "old_python": {"image": reference("old-python")},
    "no_airflow": {"image": reference("base")},
    "no_such_image": {"image": "localhost/aircell/nowhere:1", "pull_policy": "never"},
    "private_of_ones_own": {"image": PRIVATE, "registry_credentials": "team"},
    "private_of_others": {"image": PRIVATE},
    "forbidden": {"user": 0},
    "wrong_key": {"imgae": "typo"},
    "slow": {},
}
"""What stands under ``sandbox:``, by DAG."""


def write(folder: Path) -> None:
    """Makes ``folder/<case>.py`` and its YAML for every case."""
    for name, sandbox in CASES.items():
        shutil.copy(folder / "case.py.txt", folder / f"{name}.py")
        if sandbox:
            (folder / f"{name}.yaml").write_text(yaml.safe_dump({"sandbox": dict(sandbox)}))
