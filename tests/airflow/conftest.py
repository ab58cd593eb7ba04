"""One Airflow for all tests of tasks: its scheduler runs stock first, then with sandboxes to the end of the session."""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import cases
from tests.support.airflow_stack import AirflowStack
from tests.support.node import Node, running
from tests.support.outcomes import Outcomes, run_all
from tests.support.postgres import Postgres

DAGS = Path(__file__).parent / "dags"
CANARY = "can4ry"
"""Every secret of the worker begins with it."""
SANDBOXED = {"AIRFLOW__SANDBOX_RUNTIME__TASK_EXECUTION_RUNTIME": "cri"}
"""The one flag."""


def canary(name: str) -> str:
    return f"{CANARY}-{name}-{secrets.token_hex(8)}"


def fernet_key() -> str:
    """A valid Fernet key that is a canary all the same: 32 bytes in URL-safe base64."""
    return base64.urlsafe_b64encode(base64.urlsafe_b64decode(canary("fernet").ljust(43, "x") + "=")).decode()


@pytest.fixture(scope="session")
def usual_node() -> Iterator[Node]:
    """A node for Airflow alone, which runs to the session's end and tries tasks again when it likes."""
    with running() as node:
        yield node


@pytest.fixture(scope="session")
def node(usual_node: Node) -> Node:
    """The one that tests speak of."""
    return usual_node


@pytest.fixture(scope="session")
def task_stack(usual_node: Node) -> Iterator[AirflowStack]:
    """Everything but a scheduler, with the DAGs of ``dags/``."""
    home = Path(tempfile.mkdtemp(prefix="af", dir="/tmp"))
    home.chmod(0o755)
    storage = Path(f"/tmp/airflow/{home.name}")  # below the folder where Airflow keeps bundles unless told otherwise
    shutil.copytree(DAGS, home / "dags")
    cases.write(home / "dags")
    commit(home / "repository", "first")
    database = Postgres(home / canary("database"))
    database.folder.mkdir()
    stack = AirflowStack(
        home,
        bundles=[local_bundle("local", home / "dags"), git_bundle("git", home / "repository")],
        config={
            "core": {"fernet_key": fernet_key()},
            "api_auth": {"jwt_secret": canary("jwt")},
            "database": database.airflow_options(),
            "dag_processor": {"dag_bundle_storage_path": str(storage)},
            "workers": {"min_heartbeat_interval": "2"},
            "sandbox_runtime": {
                "image": usual_node.load("task"),
                "socket_path": usual_node.socket,
                "autostart": "False",
            },
        },
    )
    try:
        database.start()
        stack.start()
        stack.run("variables", "set", "database_password", "v4riable-secret")
        stack.run("variables", "set", "settings", '{"color": "blue"}')
        stored = "postgres://user:c0nnection-secret@db.example:5432/main?mode=fast"
        stack.run("connections", "add", "stored", "--conn-uri", stored)
        yield stack
    finally:
        stack.stop()
        database.stop()
        shutil.rmtree(home)
        shutil.rmtree(storage)


@pytest.fixture(scope="session")
def worker_environment(task_stack: AirflowStack) -> dict[str, str]:
    """What only the worker has: Connections and Variables in its environment and in a secrets backend of its own."""
    folder = task_stack.home / canary("backend")
    folder.mkdir()
    (folder / "variables.json").write_text('{"from_backend": "a variable of the backend"}')
    backend_connection = {"conn_type": "http", "host": "backend.example", "password": "backend-s3cret"}
    (folder / "connections.json").write_text(json.dumps({"from_backend": backend_connection}))
    backend = {
        "variables_file_path": str(folder / "variables.json"),
        "connections_file_path": str(folder / "connections.json"),
    }
    return {
        "AIRFLOW_CONN_FROM_ENVIRONMENT": "http://user:env1ronment-secret@environment.example",
        "AIRFLOW_VAR_FROM_ENVIRONMENT": "a variable of the environment",
        "AIRFLOW__WORKERS__SECRETS_BACKEND": "airflow.secrets.local_filesystem.LocalFilesystemBackend",
        "AIRFLOW__WORKERS__SECRETS_BACKEND_KWARGS": json.dumps(backend),
        "WORKER_TOKEN": canary("environment"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",  # its advice would be in the logs of stock alone
    }


@pytest.fixture(scope="session")
def stock(task_stack: AirflowStack, worker_environment: dict[str, str]) -> Outcomes:
    """How every DAG of the parity suite ends on an Airflow that has Aircell installed and not switched on."""
    with task_stack.scheduler(worker_environment):
        return run_all(task_stack, "stock")


@pytest.fixture(scope="session")
def sandboxed_stack(
    task_stack: AirflowStack, stock: Outcomes, worker_environment: dict[str, str]
) -> Iterator[AirflowStack]:
    """The same Airflow with the one flag set, and nothing else."""
    with task_stack.scheduler({**worker_environment, **SANDBOXED}):
        yield task_stack


@pytest.fixture(scope="session")
def sandboxed(sandboxed_stack: AirflowStack) -> Outcomes:
    """How every DAG of the parity suite ends in sandboxes."""
    return run_all(sandboxed_stack, "sandboxed")


def local_bundle(name: str, path: Path) -> dict[str, object]:
    classpath = "airflow.dag_processing.bundles.local.LocalDagBundle"
    return {"name": name, "classpath": classpath, "kwargs": {"path": str(path)}}


def git_bundle(name: str, repository: Path) -> dict[str, object]:
    classpath = "airflow.providers.git.bundles.git.GitDagBundle"
    return {
        "name": name,
        "classpath": classpath,
        "kwargs": {"tracking_ref": "main", "repo_url": f"file://{repository}"},
    }


def commit(repository: Path, text: str) -> str:
    """Commits a DAG that returns ``text`` with a helper module; the new version."""
    if not repository.exists():
        git("init", "--quiet", "--initial-branch", "main", str(repository))
    shutil.copy(DAGS / "versioned.py.txt", repository / "versioned.py")
    (repository / "helper_of_versioned.py").write_text(f"TEXT = {text!r}\n")
    author = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    git("-C", str(repository), "add", ".")
    git("-C", str(repository), *author, "commit", "--quiet", "--message", text)
    return git("-C", str(repository), "rev-parse", "HEAD").strip()


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout
