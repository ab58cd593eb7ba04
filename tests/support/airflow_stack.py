"""A real Airflow in a temporary folder: api-server, dag-processor, triggerer, and a scheduler with LocalExecutor.

The scheduler and its workers can be stopped and started with other settings while the rest stays up, so that one set
of DAGs runs first on stock Airflow and then in sandboxes. Nothing here imports Airflow: it is spoken to as a user
does, by its command line, its REST API and its log files.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

BIN = Path(sys.executable).parent
FINISHED = frozenset({"success", "failed"})
Json = dict[str, Any]
T = TypeVar("T")


def config_text(options: Mapping[str, Mapping[str, str]]) -> str:
    """An airflow.cfg."""
    return "\n".join(
        "\n".join([f"[{section}]", *(f"{name} = {value}" for name, value in values.items()), ""])
        for section, values in options.items()
    )


@dataclass
class AirflowStack:
    """One installation. ``home`` must be readable by everybody, for a sandbox's user reads the bundles below it."""

    home: Path
    bundles: Sequence[Json]
    """As ``[dag_processor] dag_bundle_config_list`` has it."""
    config: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """More of airflow.cfg, for every component."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """For every component."""
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _client: httpx.Client | None = None
    _scheduler_environment: Mapping[str, str] | None = None

    def install(self) -> None:
        """Writes airflow.cfg and migrates the database; starts nothing."""
        self.home.mkdir(exist_ok=True)
        self.port = free_port()
        (self.home / "airflow.cfg").write_text(config_text(self._options()))
        self.run("db", "migrate")

    def start(self) -> None:
        """Installs, and starts everything but a scheduler."""
        self.install()
        for name in ("api-server", "dag-processor", "triggerer"):
            self._spawn(name)
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)
        wait_until(self._logged_in, "the api-server", seconds=90)

    def stop(self) -> None:
        for name in list(self._processes):
            self.end(name)
        if self._client is not None:
            self._client.close()

    def run(self, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
        """``airflow ARGUMENTS``, to its end: what it printed. Raises AssertionError when it fails."""
        done = self.attempt(*arguments, environment=environment)
        if done.returncode:
            raise AssertionError(f"airflow {' '.join(arguments)} exited with {done.returncode}:\n{done.stderr[-4000:]}")
        return done.stdout

    def attempt(
        self, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """``airflow ARGUMENTS``, to its end, whatever that is."""
        argv = [str(BIN / "airflow"), *arguments]
        env = {**self.process_environment(), **(environment or {})}
        return subprocess.run(argv, env=env, cwd=self.home, capture_output=True, text=True, timeout=120, check=False)

    @contextlib.contextmanager
    def scheduler(self, environment: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
        """A scheduler with its LocalExecutor workers, which have ``environment`` on top of everybody's.

        One that runs already is ended, and started again afterwards.
        """
        before, self._scheduler_environment = self._scheduler_environment, environment or {}
        if before is not None:
            self.end("scheduler")
        try:
            yield self._spawn("scheduler", environment)
        finally:
            self.end("scheduler")
            self._scheduler_environment = before
            if before is not None:
                self._spawn("scheduler", before)

    def end(self, name: str) -> None:
        """Ends a component and all its children, at once: nothing of them is needed any more."""
        process = psutil.Process(self._processes.pop(name).pid)
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()

    # --- what a user does ---------------------------------------------------------------------------------------

    def trigger(self, dag_id: str, run_id: str, conf: Json | None = None) -> None:
        """Starts a run, once the DAG is there."""
        wait_until(lambda: self.get(f"dags/{dag_id}", ok=False), f"DAG {dag_id}", seconds=60, why=self.import_errors)
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf or {}}
        self._change("POST", f"dags/{dag_id}/dagRuns", body)

    def wait_for_run(self, dag_id: str, run_id: str, seconds: float = 120) -> str:
        """The final state of a run."""

        def finished() -> str | None:
            state: str = self.get(f"dags/{dag_id}/dagRuns/{run_id}")["state"]
            return state if state in FINISHED else None

        return wait_until(finished, f"run {run_id} of {dag_id}", seconds, why=lambda: self.states(dag_id, run_id))

    def wait_for_state(self, dag_id: str, run_id: str, task_id: str, state: str, seconds: float = 60) -> Json:
        """The task instance, once it is in ``state``."""

        def there() -> Json | None:
            found = self.task_instance(dag_id, run_id, task_id)
            return found if found["state"] == state else None

        return wait_until(there, f"{dag_id}.{task_id} {state}", seconds, why=lambda: self.states(dag_id, run_id))

    def task_instance(self, dag_id: str, run_id: str, task_id: str) -> Json:
        found: Json = self.get(f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}")
        return found

    def task_instances(self, dag_id: str, run_id: str) -> list[Json]:
        found: list[Json] = self.get(f"dags/{dag_id}/dagRuns/{run_id}/taskInstances?limit=100")["task_instances"]
        return found

    def states(self, dag_id: str, run_id: str) -> dict[str, str | None]:
        """State by task, mapped ones as ``task[0]``."""
        return {instance_name(each): each["state"] for each in self.task_instances(dag_id, run_id)}

    def set_state(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """As the button in the UI does."""
        self._change("PATCH", f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}", {"new_state": state})

    def xcoms(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> Json:
        """Value by key."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries"
        keys = [each["key"] for each in self.get(f"{path}?map_index={map_index}")["xcom_entries"]]
        return {key: self.get(f"{path}/{key}?map_index={map_index}")["value"] for key in keys}

    def log(self, dag_id: str, run_id: str, task_id: str, attempt: int = 1, map_index: int = -1) -> list[Json]:
        """The lines of a task's log file."""
        parts = [f"dag_id={dag_id}", f"run_id={run_id}", f"task_id={task_id}"]
        if map_index >= 0:
            parts.append(f"map_index={map_index}")
        path = self.home.joinpath("logs", *parts, f"attempt={attempt}.log")
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def log_text(self, *args: Any, **kwargs: Any) -> str:
        return "\n".join(json.dumps(line) for line in self.log(*args, **kwargs))

    def import_errors(self) -> Any:
        return self.get("importErrors")["import_errors"]

    def component_log(self, name: str) -> str:
        """What a component wrote to its own stdout and stderr."""
        return (self.home / f"{name}.log").read_text()

    def get(self, path: str, *, ok: bool = True) -> Any:
        """GET from the REST API; with ``ok`` false, None for an error."""
        response = self._http.get(f"/api/v2/{path}")
        if not ok and response.is_error:
            return None
        return self._answer(response)

    # --- how it is done -----------------------------------------------------------------------------------------

    @property
    def _http(self) -> httpx.Client:
        assert self._client is not None, "start() was not called"
        return self._client

    def _change(self, method: str, path: str, body: Json) -> None:
        """Asks again while SQLite has it that "database is locked".

        To a transaction that has read before another one wrote it says so at once, whatever its timeout
        (SQLITE_BUSY_SNAPSHOT of sqlite.org/rescode.html). Nothing has been changed then.
        """

        def done() -> bool:
            response = self._http.request(method, f"/api/v2/{path}", json=body)
            return "database is locked" not in response.text and self._answer(response) is not None

        wait_until(done, f"{method} {path}", seconds=30)

    def _answer(self, response: httpx.Response) -> Any:
        assert response.is_success, f"{response.request.method} {response.request.url}: {response.text}"
        return response.json() if response.content else None

    def _logged_in(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            response = self._http.get("/auth/token")
            if response.is_success:
                self._http.headers["Authorization"] = f"Bearer {response.json()['access_token']}"
                return True
        return False

    def _options(self) -> dict[str, dict[str, str]]:
        url = f"http://127.0.0.1:{self.port}"
        options: dict[str, dict[str, str]] = {
            "core": {
                "executor": "LocalExecutor",
                "parallelism": "4",
                "load_examples": "False",
                "dags_are_paused_at_creation": "False",
                "simple_auth_manager_all_admins": "True",
                "execution_api_server_url": f"{url}/execution/",
                "dags_folder": str(self.home / "dags"),
            },
            "database": {"sql_alchemy_conn": f"sqlite:///{self.home / 'airflow.db'}"},
            "api": {
                "base_url": url,
                "port": str(self.port),
                "host": "127.0.0.1",
                "workers": "1",
                "expose_stacktrace": "True",
            },
            "dag_processor": {
                "dag_bundle_config_list": json.dumps(self.bundles).replace("%", "%%"),
                "min_file_process_interval": "600",
                "refresh_interval": "600",
            },
            "scheduler": {"scheduler_idle_sleep_time": "0.3", "enable_health_check": "False"},
            "triggerer": {"job_heartbeat_sec": "1"},
            "logging": {
                "base_log_folder": str(self.home / "logs"),
                "worker_log_server_port": str(free_port()),
                "trigger_log_server_port": str(free_port()),
            },
            "api_auth": {"jwt_secret": secrets.token_hex(32)},
            "standard": {"venv_install_method": "pip"},
        }
        for section, values in self.config.items():
            options[section] = {**options.get(section, {}), **values}
        return options

    def process_environment(self) -> dict[str, str]:
        """What every component starts with."""
        kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
        path = f"{BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        own = {"PATH": path, "HOME": str(self.home), "AIRFLOW_HOME": str(self.home), "PYTHONUNBUFFERED": "1"}
        return {**kept, **own, **self.environment}

    def _spawn(self, name: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        with (self.home / f"{name}.log").open("ab") as output:
            process = subprocess.Popen(
                [str(BIN / "airflow"), name],
                env={**self.process_environment(), **(environment or {})},
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=_die_with_parent,
            )
        self._processes[name] = process
        return process


def instance_name(instance: Json) -> str:
    index = instance["map_index"]
    return instance["task_id"] if index < 0 else f"{instance['task_id']}[{index}]"


def wait_until(
    probe: Callable[[], T | None], what: str, seconds: float, why: Callable[[], Any] = lambda: "", pause: float = 0.25
) -> T:
    """The first true value of ``probe``. Raises AssertionError after ``seconds``, with what ``why`` says."""
    deadline = time.monotonic() + seconds
    while not (found := probe()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {what}; {why()}"
        time.sleep(pause)
    return found


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _die_with_parent() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG, prctl(2)
