"""``airflow sandbox test`` and ``airflow sandbox parse``, on a real node with a real database."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.airflow_stack import AirflowStack
from tests.support.node import Node

pytestmark = pytest.mark.timeout(300)

DAG = """
import os, sys
from airflow.sdk import DAG, Variable, task

with DAG("shown", schedule=None):

    @task
    def where(**context):
        print("uid", os.getuid(), "prefix", sys.prefix, "day", context["ds"], "says", Variable.get("greeting"))
        print("team", os.environ["TEAM"], "hook", os.environ["SEEN_BY_HOOK"])

    @task
    def bad():
        raise ValueError("on purpose")

    where() >> bad()
"""


LOCAL_SETTINGS = """
def sandbox_mutation_hook(spec, context):
    seen = ":".join([context["kind"], context.get("task_id", "")])
    return spec.model_copy(update={"env": {**spec.env, "SEEN_BY_HOOK": seen}})
"""


@pytest.fixture(scope="module")
def stack(node: Node) -> Iterator[AirflowStack]:
    """An Airflow with both flags off, which knows the DAG ``shown``."""
    home = Path(tempfile.mkdtemp(prefix="af", dir="/tmp"))
    home.chmod(0o755)
    dags = home / "dags"
    dags.mkdir()
    (dags / "shown.py").write_text(DAG)
    (dags / ".aircell.yaml").write_text(f"sandbox:\n  image: {node.load('task')}\n  network: none\n")
    bundle = {
        "name": "team",
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(dags)},
    }
    (home / "config").mkdir()
    (home / "config/airflow_local_settings.py").write_text(LOCAL_SETTINGS)
    config = {"sandbox_runtime": {"socket_path": node.socket}, "sandbox_environment": {"team": "data"}}
    stack = AirflowStack(home=home, bundles=[bundle], config=config)
    stack.install()
    stack.run("dags", "reserialize")
    stack.run("variables", "set", "greeting", "hello")
    yield stack
    shutil.rmtree(home)


def test_one_task_runs_in_its_sandbox_and_leaves_nothing(stack: AirflowStack, node: Node) -> None:
    out = stack.run("sandbox", "test", "shown", "where", "2026-01-02")
    assert "uid 50000 prefix /opt/venv day 2026-01-02 says hello" in out
    assert "team data hook task:where" in out
    assert out.splitlines()[-1] == "shown.where: success"
    assert "airflow_temporary_run" not in stack.run("dags", "list-runs", "shown", "--output", "plain")
    node.clean()


def test_a_task_that_fails_makes_the_command_fail(stack: AirflowStack) -> None:
    done = stack.attempt("sandbox", "test", "shown", "bad")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "shown.bad: failed")
    assert "ValueError: on purpose" in done.stdout


def test_an_unknown_backend_names_those_that_there_are(stack: AirflowStack) -> None:
    done = stack.attempt("sandbox", "test", "shown", "where", "--backend", "nope")
    said = "shown.where: not run: this node has no backend 'nope'; it has: cri."
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(said)


def test_one_file_is_parsed_in_its_sandbox(stack: AirflowStack, node: Node) -> None:
    out = stack.run("sandbox", "parse", str(stack.home / "dags/shown.py"))
    assert out.splitlines()[-1] == "DAG shown: 2 tasks: where, bad"
    node.clean()


def test_an_import_error_is_shown_and_makes_the_command_fail(stack: AirflowStack) -> None:
    file = stack.home / "dags/broken.py"
    file.write_text("from airflow.sdk import DAG\nimport no_such_module\n")
    done = stack.attempt("sandbox", "parse", str(file))
    assert done.returncode == 1
    assert "import error in broken.py:\nTraceback" in done.stdout
    assert "No module named 'no_such_module'" in done.stdout


def test_a_mistake_in_the_metadata_names_file_line_and_key(stack: AirflowStack) -> None:
    file, metadata = stack.home / "dags/typo.py", stack.home / "dags/typo.yaml"
    file.write_text(DAG)
    metadata.write_text("sandbox:\n  network: none\n  imagee: x\n")
    done = stack.attempt("sandbox", "parse", str(file))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"{file}: not parsed: {metadata}:3: imagee: unknown key")
