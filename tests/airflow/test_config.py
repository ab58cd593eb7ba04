"""Configuration as a user meets it: ``airflow config list``, ``aircell explain``, and nothing of ours when off."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aircell_airflow import provider_info

BIN = Path(sys.executable).parent
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An AIRFLOW_HOME with one bundle, ``dags``, and one DAG file in a folder of it."""
    (tmp_path / "dags/team").mkdir(parents=True)
    (tmp_path / "dags/team/etl.py").write_text("raise RuntimeError('explain must not run this')\n")
    bundle = {
        "name": "dags",
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(tmp_path / "dags")},
    }
    (tmp_path / "airflow.cfg").write_text(
        "[dag_processor]\n"
        f"dag_bundle_config_list = [{json.dumps(bundle)}]\n"
        "[sandbox_runtime]\n"
        "task_execution_runtime = cri\n"
        "memory = 1Gi\n"
        "[dag_parsing_sandbox_runtime]\n"
        "memory = 300Mi\n"
        "[sandbox_environment]\n"
        "region = eu\n"
    )
    return tmp_path


@pytest.fixture
def run(home: Path) -> Run:
    def run_command(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
        own = {"AIRFLOW_HOME": str(home), "HOME": str(home), "PATH": f"{BIN}:{os.defpath}"}
        return subprocess.run(
            argv, env={**own, **environment}, capture_output=True, text=True, timeout=100, check=False
        )

    return run_command


def test_airflow_config_list_shows_our_options_with_descriptions_and_defaults(run: Run) -> None:
    listed = run("airflow", "config", "list", "--section", "sandbox_runtime", "--defaults", "--show-values").stdout
    for option in provider_info.NODE_OPTIONS + provider_info.SPEC_OPTIONS:
        assert option.description.split(".")[0] in listed
        assert re.search(rf"^# {option.name} = {re.escape(option.default or '')}\s*$", listed, re.MULTILINE), (
            option.name
        )
    for section in (provider_info.TASK, provider_info.PARSE):
        listed = run("airflow", "config", "list", "--section", section, "--defaults").stdout
        assert re.findall(r"^# (\w+) =", listed, re.MULTILINE) == [each.name for each in provider_info.SPEC_OPTIONS]


def test_airflow_reads_our_defaults_without_a_configuration(run: Run) -> None:
    assert run("airflow", "config", "get-value", "sandbox_runtime", "dag_parsing_runtime").stdout.strip() == "process"


def test_the_provider_is_listed(run: Run) -> None:
    assert re.search(r"aircell", run("airflow", "providers", "list", "--output", "plain").stdout)


def test_explain_as_json_has_spec_and_sources_for_both_kinds(run: Run, home: Path) -> None:
    folder, sidecar = home / "dags/.aircell.yaml", home / "dags/team/etl.yaml"
    folder.write_text("sandbox:\n  image: team/etl:7\n  network: none\n")
    sidecar.write_text("sandbox:\n  environment:\n    region: us\n    REGION: us\n  task:\n    resources: {cpus: 2}\n")
    done = run("aircell", "explain", str(home / "dags/team/etl.py"), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {kind: found[kind]["backend"] for kind in found} == {"task": "cri", "parse": "process"}
    assert found["task"]["spec"]["env"] == {"REGION": "us", "region": "us"}
    assert found["parse"]["spec"]["resources"]["memory"] == 300 * 2**20
    expected = {
        "backend": "[sandbox_runtime] task_execution_runtime",
        "image": f"{folder}:2",
        "network": f"{folder}:3",
        "env.REGION": f"{sidecar}:4",
        "resources.memory": "[sandbox_runtime] memory",
        "resources.cpus": f"{sidecar}:6",
        "resources.pids": "default of [sandbox_runtime] pids",
        "groups": "built-in default",
    }
    assert {name: found["task"]["sources"][name] for name in expected} == expected
    assert found["parse"]["sources"]["resources.memory"] == "[dag_parsing_sandbox_runtime] memory"
    assert found["parse"]["sources"]["resources.cpus"] == "built-in default"


def test_explain_as_a_table_has_a_line_for_every_value(run: Run, home: Path) -> None:
    done = run("aircell", "explain", str(home / "dags/team/etl.py"), "--kind", "parse")
    lines = [re.split(r" {2,}", line.strip()) for line in done.stdout.splitlines()]
    assert ["parse", "value", "source"] in lines
    assert ["resources.memory", str(300 * 2**20), "[dag_parsing_sandbox_runtime] memory"] in lines
    assert ["env.REGION", "eu", "[sandbox_environment] region"] in lines


def test_explain_names_file_line_and_key_of_a_mistake(run: Run, home: Path) -> None:
    (home / "dags/team/etl.yaml").write_text("sandbox:\n  image: x\n  resources:\n    memroy: 1Gi\n")
    done = run("aircell", "explain", str(home / "dags/team/etl.py"))
    assert done.returncode == 125
    assert f"{home}/dags/team/etl.yaml:4: resources.memroy: unknown key; known here: cpus, memory" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mistake_in_airflow_cfg_names_section_and_option(run: Run, home: Path) -> None:
    done = run("aircell", "explain", str(home / "dags/team/etl.py"), AIRFLOW__SANDBOX_RUNTIME__MEMROY="1Gi")
    assert "[sandbox_runtime] memroy (from AIRFLOW__SANDBOX_RUNTIME__MEMROY): unknown option." in done.stderr


def test_with_both_flags_off_only_two_modules_of_ours_are_imported(run: Run) -> None:
    """The hook, which reads the flags, and the description of our options and commands."""
    code = (
        "import sys, airflow.cli.cli_parser, airflow.sdk.execution_time.supervisor, airflow.dag_processing.manager;"
        "from airflow.sdk.execution_time.coordinator import get_coordinator_manager;"
        "print(get_coordinator_manager().for_queue('default'));"
        "print(sorted(name for name in sys.modules if name.startswith('aircell')))"
    )
    done = run(sys.executable, "-c", code, AIRFLOW__SANDBOX_RUNTIME__TASK_EXECUTION_RUNTIME="process")
    coordinator, ours = done.stdout.splitlines()[-2:]
    assert "_PythonCoordinator" in coordinator
    assert ours == "['aircell_airflow', 'aircell_airflow.hook', 'aircell_airflow.provider_info']"


def test_what_a_task_needs_is_imported_before_an_executor_forks_its_workers(run: Run) -> None:
    code = (
        "import sys, airflow.sdk.execution_time.supervisor;"
        "print({'aircell.client', 'aircell_airflow.coordinator', 'aircell_airflow.sandboxed'} - sys.modules.keys())"
    )
    done = run(sys.executable, "-c", code, AIRFLOW__SANDBOX_RUNTIME__TASK_EXECUTION_RUNTIME="cri")
    assert done.stdout.splitlines()[-1] == "set()"
