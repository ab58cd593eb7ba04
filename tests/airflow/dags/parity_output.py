"""What tasks write: levels, streams, subprocesses, secrets."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import structlog
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import Connection, Variable, dag, task
from airflow.sdk.log import mask_secret


@dag(schedule=None)
def output():
    @task
    def streams():
        print("to stdout")
        print("to stderr", file=sys.stderr)
        os.write(1, b"written to descriptor 1\n")
        subprocess.run(["/bin/sh", "-c", "echo from a child; echo from a child to stderr >&2"], check=True)
        print("no newline at the end", end="")

    @task
    def levels():
        log = logging.getLogger("my.logger")
        for level in ("debug", "info", "warning", "error", "critical"):
            getattr(log, level)("a line of level %s", level)
        structlog.get_logger("my.structured").warning("structured", key="value")
        logging.getLogger("airflow.task").info("to the task's logger")

    @task
    def unicode_and_long():
        print("ümlaut \N{SNOWMAN} " + "x" * 20_000)

    @task
    def masks():
        mask_secret("hunter2hunter2")
        print("the password is hunter2hunter2")
        logging.getLogger("my.logger").info("the password is hunter2hunter2")

    @task
    def variables():
        print("password:", Variable.get("database_password"))
        print("json:", Variable.get("settings", deserialize_json=True)["color"])
        print("default:", Variable.get("missing", default="none"))
        Variable.set("written", "by the task")
        return Variable.get("written")

    @task
    def connections():
        connection = Connection.get("stored")
        print("uri:", connection.get_uri(), "password:", connection.password)
        return [connection.host, connection.port, connection.extra_dejson]

    @task
    def missing_connection():
        return Connection.get("there_is_none").host

    @task
    def from_the_environment():
        """Both are in the worker's environment and nowhere else."""
        connection = Connection.get("from_environment")
        print("password:", connection.password)
        return [connection.host, connection.password == "env1ronment-secret", Variable.get("from_environment")]

    @task
    def from_the_backend():
        """Both are in the worker's secrets backend and nowhere else."""
        connection = Connection.get("from_backend")
        print("password:", connection.password)
        return [connection.host, connection.password == "backend-s3cret", Variable.get("from_backend")]

    streams()
    levels()
    unicode_and_long()
    masks()
    variables()
    connections()
    missing_connection()
    from_the_environment()
    from_the_backend()
    BashOperator(task_id="bash", bash_command="echo in bash; (sleep 0.1; echo in its child) & wait; echo last line")
    BashOperator(task_id="bash_fails", bash_command="echo out of luck >&2; exit 17")
    BashOperator(task_id="bash_skips", bash_command="exit 99")
    BashOperator(task_id="bash_templated", bash_command="echo {{ ti.task_id }} {{ var.value.settings }}")


@dag(schedule=None)
def virtualenv():
    @task.virtualenv(requirements=None, system_site_packages=False)
    def in_a_venv(number):
        import sys

        print("in a virtualenv:", sys.prefix != sys.base_prefix)
        return number + 1

    in_a_venv(41)


output()
virtualenv()
