"""Small decisions around a task's sandbox: exit codes, versions, the worker's own secrets."""

from __future__ import annotations

import importlib.metadata
import signal
from typing import Any

import pytest
from airflow.sdk.definitions.connection import Connection
from airflow.sdk.exceptions import AirflowSecretsBackendAccessDenied
from airflow.sdk.execution_time.comms import GetConnection, GetVariable, GetXCom

from aircell.errors import IncompatibleImage
from aircell.status import ExitStatus
from aircell_airflow import runner, skew, worker_secrets
from aircell_airflow.sandboxed import exit_code


@pytest.mark.parametrize(
    ("exit", "code", "name"),
    [
        (ExitStatus(code=0), 0, None),
        (ExitStatus(code=42), 42, None),
        (ExitStatus(signal=signal.SIGTERM), -15, "SIGTERM"),
        (ExitStatus(signal=signal.SIGKILL, oom_killed=True), -9, "SIGKILL"),
        # Airflow says "likely out of memory" of every SIGKILL that has a name.
        (ExitStatus(signal=signal.SIGKILL), -9, None),
        (ExitStatus(code=1, oom_killed=True), 1, None),
        (ExitStatus(reason="nobody knows"), -9, None),
    ],
)
def test_an_exit_code_has_a_name_where_airflow_may_use_it(exit: ExitStatus, code: int, name: str | None) -> None:
    assert exit_code(exit) == code
    assert getattr(exit_code(exit), "name", None) == name


# --- versions -----------------------------------------------------------------------------------------------------


def test_the_same_protocol_needs_no_translation() -> None:
    assert skew.wire_schema(runner.describe()) is None


def test_a_protocol_of_the_future_is_refused_with_both_versions() -> None:
    facts = {"airflow_core": "3.9.1", "task_sdk": "1.9.1", "wire_schema": "2031-01-01"}
    with pytest.raises(IncompatibleImage) as caught:
        skew.wire_schema(facts)
    assert "Airflow 3.9.1 (task SDK 1.9.1)" in caught.value.message
    assert "2031-01-01" in caught.value.message
    worker = skew.with_worker(caught.value)
    assert f"This worker has Airflow {importlib.metadata.version('apache-airflow-core')}" in worker.message
    assert worker.hint == caught.value.hint


@pytest.mark.parametrize("facts", [{}, {"wire_schema": None}, {"wire_schema": ["2026-06-16"]}])
def test_facts_that_are_none_are_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(IncompatibleImage):
        skew.wire_schema(facts)


# --- secrets ------------------------------------------------------------------------------------------------------


class Process:
    """The sending half of a supervisor."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, int, Any]] = []

    def send_msg(self, msg: Any, request_id: int, error: Any = None, **_: Any) -> None:
        self.sent.append((msg, request_id, error))


class Backend:
    """A secrets backend that knows what it is given; an exception is raised."""

    def __init__(self, **known: Any) -> None:
        self.known = known
        self.asked: list[str] = []

    def _get(self, name: str) -> Any:
        self.asked.append(name)
        found = self.known.get(name)
        if isinstance(found, Exception):
            raise found
        return found

    def get_connection(self, conn_id: str) -> Any:
        return self._get(conn_id)

    def get_variable(self, key: str) -> Any:
        return self._get(key)


@pytest.fixture
def process() -> Process:
    return Process()


def backends(monkeypatch: pytest.MonkeyPatch, *chain: Backend) -> None:
    monkeypatch.setattr(worker_secrets, "ensure_secrets_loaded", lambda default_backends: list(chain))


def answer(process: Process, request: Any) -> bool:
    return worker_secrets.answer(process, request, 7)  # type: ignore[arg-type]


def test_what_nobody_here_knows_is_for_the_api_server(monkeypatch: pytest.MonkeyPatch, process: Process) -> None:
    backends(monkeypatch, Backend())
    xcom = GetXCom(key="k", dag_id="d", run_id="r", task_id="t", map_index=-1)
    assert not any(answer(process, each) for each in (GetVariable(key="v"), GetConnection(conn_id="c"), xcom))
    assert process.sent == []


def test_a_backend_that_fails_is_passed_over(monkeypatch: pytest.MonkeyPatch, process: Process) -> None:
    backends(monkeypatch, Backend(v=OSError("unreachable")), Backend(v=""))
    assert answer(process, GetVariable(key="v"))
    ((message, request_id, error),) = process.sent
    assert (message.key, message.value, request_id, error) == ("v", "", 7, None)


def test_a_connection_with_all_its_parts(monkeypatch: pytest.MonkeyPatch, process: Process) -> None:
    uri = "postgres://user:pass@host:5432/main?mode=fast"
    backends(monkeypatch, Backend(c=Connection.from_uri(uri, conn_id="c")))
    assert answer(process, GetConnection(conn_id="c"))
    ((message, _, _),) = process.sent
    sent = message.model_dump(exclude_unset=True, by_alias=True)
    assert sent == {
        "conn_id": "c",
        "conn_type": "postgres",
        "host": "host",
        "schema": "main",
        "login": "user",
        "password": "pass",
        "port": 5432,
        "extra": '{"mode": "fast"}',
        "type": "ConnectionResult",
    }


def test_a_denial_is_final(monkeypatch: pytest.MonkeyPatch, process: Process) -> None:
    second = Backend(v="what the first refuses")
    backends(monkeypatch, Backend(v=AirflowSecretsBackendAccessDenied("not for this team")), second)
    assert answer(process, GetVariable(key="v"))
    ((message, _, error),) = process.sent
    assert message is None
    assert error.error.name == "PERMISSION_DENIED"
    assert second.asked == []
