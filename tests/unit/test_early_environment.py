"""Which variables a sandbox has before its job, and which it gets with it."""

from __future__ import annotations

from aircell.spec import SandboxSpec
from aircell_airflow.early_environment import split

EARLY = {"PYTHONHASHSEED": "0", "LD_PRELOAD": "x.so", "TZ": "UTC", "AIRFLOW__CORE__EXECUTOR": "x", "LC_ALL": "C"}
LATE = {"TEAM": "blue", "AWS_REGION": "eu", "HTTPS_PROXY": "http://proxy"}


def test_what_starts_before_the_job_finds_its_variables_there() -> None:
    assert split(SandboxSpec(image="x", env={**LATE, **EARLY})) == (EARLY, LATE)


def test_a_preloaded_module_finds_all_of_them_there() -> None:
    assert split(SandboxSpec(image="x", preload=("pandas",), env={**LATE, **EARLY})) == ({**LATE, **EARLY}, {})
