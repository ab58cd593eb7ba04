"""Connections and Variables from the worker's own environment and external secrets backends.

Stock Airflow asks these in the task's process, before the API server. In a sandbox that process has neither the
worker's environment nor a backend's credentials, so the supervisor asks them on its behalf, in the same order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
from airflow.sdk.configuration import ensure_secrets_loaded
from airflow.sdk.exceptions import AirflowSecretsBackendAccessDenied, ErrorType
from airflow.sdk.execution_time.comms import (
    ConnectionResult,
    ErrorResponse,
    GetConnection,
    GetVariable,
    VariableResult,
)
from airflow.sdk.log import mask_secret

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.sdk.bases.secrets_backend import BaseSecretsBackend
    from airflow.sdk.execution_time.supervisor import WatchedSubprocess

log = structlog.get_logger(logger_name="aircell")

_ENVIRONMENT = "airflow.secrets.environment_variables.EnvironmentVariablesBackend"
_CONNECTION_FIELDS = ("conn_type", "host", "login", "password", "schema", "port", "extra")


def answer(process: WatchedSubprocess, request: object, request_id: int) -> bool:
    """Answers a request for a Connection or Variable that the worker itself knows; False when it knows nothing.

    What it answers is masked in this process's logs from then on. Where a backend denies access the answer is that,
    for then nobody else may be asked.
    """
    try:
        if isinstance(request, GetConnection):
            conn_id = request.conn_id
            connection = _first(lambda backend: backend.get_connection(conn_id=conn_id))
            if connection is not None:
                process.send_msg(_connection(connection, conn_id), request_id, exclude_unset=True, by_alias=True)
                return True
        elif isinstance(request, GetVariable):
            key = request.key
            value = _first(lambda backend: backend.get_variable(key=key))
            if value is not None:
                mask_secret(value, key)
                found = VariableResult(key=key, value=value, type="VariableResult")  # an unset type would not be sent
                process.send_msg(found, request_id, exclude_unset=True)
                return True
    except AirflowSecretsBackendAccessDenied as error:
        denied = ErrorResponse(error=ErrorType.PERMISSION_DENIED, detail={"message": str(error)})
        process.send_msg(None, request_id, error=denied)
        return True
    return False


def _first(ask: Callable[[BaseSecretsBackend], Any]) -> Any:
    # Not supervisor.ensure_secrets_backend_loaded(): in a LocalExecutor's worker it answers with the scheduler's
    # chain, which reads the metadata database and so bypasses what the API server permits this task.
    for backend in ensure_secrets_loaded(default_backends=[_ENVIRONMENT]):
        try:
            found = ask(backend)
        except AirflowSecretsBackendAccessDenied:
            raise
        except Exception:
            log.warning("A secrets backend failed; asking the next", backend=type(backend).__name__, exc_info=True)
            continue
        if found is not None:
            return found
    return None


def _connection(found: Any, conn_id: str) -> ConnectionResult:
    for secret in filter(None, (found.password, found.extra)):
        mask_secret(secret)
    fields = {name: getattr(found, name) for name in _CONNECTION_FIELDS}
    return ConnectionResult(conn_id=conn_id, **fields, type="ConnectionResult")
