"""The runner says whether an image can run a job before it imports anything of Airflow."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from aircell_airflow import runner

SOURCE = Path(runner.__file__)


def versions(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    def version(name: str) -> str:
        try:
            return installed[name.replace("-", "_")]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        ({}, "no apache-airflow-core"),
        ({"apache_airflow_core": "3.3.2"}, "no apache-airflow-task-sdk"),
        ({"apache_airflow_core": "3.1.8", "apache_airflow_task_sdk": "1.1.8"}, "Airflow 3.1.8 (task SDK 1.1.8)"),
    ],
)
def test_an_image_that_cannot_work(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], said: str) -> None:
    versions(monkeypatch, **installed)
    with pytest.raises(RuntimeError) as caught:
        runner.describe()
    message, _, hint = str(caught.value).partition("\n")
    assert said in message
    assert hint


def test_a_python_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(RuntimeError, match=r"needs Python 3\.10 or newer"):
        runner.describe()


@pytest.mark.parametrize("installed", [{"apache_airflow_core": "3.10.0", "apache_airflow_task_sdk": "1.10.0"}])
def test_versions_are_numbers(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str]) -> None:
    versions(monkeypatch, **installed)
    assert runner.describe()["airflow_core"] == "3.10.0"


def test_it_needs_nothing_but_the_standard_library_to_be_loaded() -> None:
    program = f"import sys, runpy; runpy.run_path({str(SOURCE)!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    assert {name.split(".")[0] for name in done.stdout.split()} <= sys.stdlib_module_names | {"__main__"}
