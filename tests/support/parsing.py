"""A real ``airflow dag-processor``, stock or sandboxed, in a temporary folder, looked at through its database."""

from __future__ import annotations

import contextlib
import functools
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.airflow_stack import AirflowStack, Json, config_text, free_port, wait_until

FAST: Mapping[str, Mapping[str, str]] = {
    "dag_processor": {
        "min_file_process_interval": "1",
        "bundle_refresh_check_interval": "1",
        "refresh_interval": "2",
        "stale_dag_threshold": "3",
    },
    "core": {"min_serialized_dag_update_interval": "0"},
    "scheduler": {"parsing_cleanup_interval": "1"},
}
"""Everything that the DAG processor does now and then, it does at once."""

_ASK_FOR_CALLBACK = """
from airflow.callbacks.callback_requests import DagCallbackRequest
from airflow.models.db_callback_request import DbCallbackRequest
from airflow.utils.session import create_session
request = DagCallbackRequest(
    filepath={file!r}, bundle_name="dags", bundle_version=None, dag_id={dag_id!r}, run_id="r",
    is_failure_callback=True, msg="a test",
)
with create_session() as session:
    session.add(DbCallbackRequest(priority_weight=1, callback=request))
"""


def sandboxed(socket: str, image: str, **options: str) -> dict[str, dict[str, str]]:
    """What airflow.cfg needs so that files are parsed in sandboxes."""
    main = {
        "dag_parsing_runtime": "cri",
        "socket_path": socket,
        "image": image,
        "autostart": "False",
        "network": "none",
    }
    return {"sandbox_runtime": {**main, **options}}


def merged(*configs: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Several airflow.cfg as one; the later ones win."""
    result: dict[str, dict[str, str]] = {}
    for config in configs:
        for section, options in config.items():
            result[section] = {**result.get(section, {}), **options}
    return result


@dataclass
class ParsingStack(AirflowStack):
    """A database, bundles that are folders of ``home``, and a DAG processor on them."""

    def configure(self, *configs: Mapping[str, Mapping[str, str]]) -> None:
        """Writes airflow.cfg; a DAG processor that is started later reads it."""
        self.config = merged(FAST, *configs)
        (self.home / "airflow.cfg").write_text(config_text(self._options()))

    def start(self) -> None:
        self._spawn("dag-processor")

    @property
    def dags(self) -> Path:
        """The first bundle's folder."""
        return self.home / "dags"

    @property
    def file(self) -> Path:
        return self.home / "airflow.db"

    def write(self, name: str, text: str, bundle: str = "dags") -> Path:
        """A file in a bundle."""
        path = self.home / bundle / name
        path.write_text(textwrap.dedent(text))
        return path

    def python(self, code: str) -> None:
        """Runs a script as a component of this Airflow."""
        subprocess.run([sys.executable, "-c", code], env=self.process_environment(), check=True, timeout=120)

    def ask_for_callback(self, dag_id: str, file: str) -> None:
        """What the scheduler does when a run has failed."""
        self.python(_ASK_FOR_CALLBACK.format(dag_id=dag_id, file=file))

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """What the database answers."""
        with contextlib.closing(sqlite3.connect(f"file:{self.file}?mode=ro", uri=True, timeout=10)) as connection:
            return connection.execute(sql, values).fetchall()

    def errors(self, bundle: str = "dags") -> dict[str, str]:
        """Import errors by file."""
        return dict(self.rows("select filename, stacktrace from import_error where bundle_name = ?", bundle))

    def stale(self) -> dict[str, bool]:
        """dag_id -> whether Airflow takes the DAG for gone."""
        return {dag_id: bool(stale) for dag_id, stale in self.rows("select dag_id, is_stale from dag")}

    def wait_for_dags(self, *dag_ids: str, seconds: float = 120) -> None:
        """Until each of them is there and current."""
        wait_until(
            lambda: all(self.stale().get(dag_id) is False for dag_id in dag_ids),
            f"the DAGs {dag_ids}",
            seconds,
            why=self.why,
        )

    def wait_for_error(self, file: str, says: str, seconds: float = 120, bundle: str = "dags") -> str:
        """The import error of a file, once it says that."""
        wait_until(lambda: says in self.errors(bundle).get(file, ""), f"{says!r} for {file}", seconds, why=self.why)
        return self.errors(bundle)[file]

    def wait_for_no_error(self, file: str, seconds: float = 120) -> None:
        wait_until(lambda: file not in self.errors(), f"no import error for {file}", seconds, why=self.why)

    def parse_log(self, name: str) -> str:
        """What was logged about the parses of a file of the first bundle so far."""
        return "".join(path.read_text() for path in self.home.glob(f"logs/dag_processor/2*/dags/{name}.log"))

    def why(self) -> str:
        log = self.home / "dag-processor.log"
        tail = log.read_text()[-3000:] if log.exists() else ""
        return f"DAGs {self.stale()}, errors {self.errors()}, and the DAG processor said:\n{tail}"


@contextlib.contextmanager
def temporary_stack(names: Sequence[str] = ("dags",)) -> Iterator[ParsingStack]:
    """A stack with a migrated database and empty bundles; its DAG processor is ended with it."""
    home = Path(tempfile.mkdtemp(prefix="ap", dir="/tmp"))
    home.chmod(0o755)  # the bundles are read by the sandbox's user
    local = "airflow.dag_processing.bundles.local.LocalDagBundle"
    configured: list[Json] = [
        {"name": name, "classpath": local, "kwargs": {"path": str(home / name)}} for name in names
    ]
    stack = ParsingStack(home=home, bundles=configured)
    stack.port = free_port()
    try:
        for name in names:
            (home / name).mkdir()
        stack.configure()
        stack.file.write_bytes(_migrated_database())
        yield stack
    finally:
        stack.stop()
        shutil.rmtree(home)


@functools.cache
def _migrated_database() -> bytes:
    home = Path(tempfile.mkdtemp(prefix="ap", dir="/tmp"))
    try:
        stack = ParsingStack(home=home, bundles=[])
        stack.port = free_port()
        stack.configure()
        stack.run("db", "migrate")
        return stack.file.read_bytes()
    finally:
        shutil.rmtree(home)
