"""What a task may do to the system around it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

from airflow.sdk import dag, get_current_context, task


@dag(schedule=None, params={"name": "nobody"})
def leaves_a_daemon():
    @task
    def forks_twice():
        """Leaves a process behind that has nothing more to do with this one, nor with its session."""
        name = get_current_context()["params"]["name"]
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execv("/bin/sh", ["/bin/sh", "-c", "while :; do sleep 1; done", name])
            os._exit(0)
        os.wait()
        time.sleep(0.5)
        commands = [path.read_text() for path in Path("/proc").glob("[0-9]*/cmdline")]
        return sum(name in command for command in commands)

    forks_twice()


@dag(schedule=None)
def logs_from_a_new_process():
    @task
    def starts_another():
        """As ``run_as_user`` does: another program takes over the request socket and asks for a log of its own."""
        code = (
            "from airflow.sdk.execution_time import task_runner\n"
            "task_runner.reinit_supervisor_comms()\n"
            "import structlog\n"
            "structlog.get_logger('another').warning('from another program', key=7)\n"
            "from airflow.sdk import Variable\n"
            "structlog.get_logger('another').info('it reads ' + Variable.get('settings'))\n"
        )
        env = {**os.environ, "_AIRFLOW__REEXECUTED_PROCESS": "1"}
        subprocess.run([sys.executable, "-c", code], env=env, stdin=0, check=True)

    starts_another()


@dag(schedule=None)
def eats_memory():
    @task(retries=1, retry_delay=timedelta(seconds=1))
    def eats():
        if get_current_context()["ti"].try_number == 1:
            print(len(b"x" * 2**30))
        return "enough"

    eats()


@dag(schedule=None)
def floods():
    @task
    def writes_one_line():
        for _ in range(20):
            os.write(1, b"x" * 2**20)

    @task
    def sends_garbage():
        os.write(0, b"\xff" * 64)
        time.sleep(60)

    writes_one_line()
    sends_garbage()


@dag(schedule=None)
def waits():
    @task
    def sleeps():
        get_current_context()["ti"].xcom_push(key="began", value=True)
        time.sleep(120)

    sleeps()


@dag(schedule=None)
def writes_a_file():
    @task
    def writes():
        """In the folder where it starts, as people do."""
        Path("result.txt").write_text("here")
        return str(Path.cwd())

    writes()


@dag(schedule=None)
def queues():
    @task
    def tells():
        import platform

        return platform.node()

    tells.override(task_id="default")()
    tells.override(task_id="other", queue="another-queue")()


leaves_a_daemon()
queues()
logs_from_a_new_process()
eats_memory()
floods()
writes_a_file()
waits()
