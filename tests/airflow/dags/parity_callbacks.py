"""Code of the author that Airflow runs around a task."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import BaseOperator, dag, task


def says(what):
    def callback(context):
        print(f"{what} of {context['ti'].task_id}, try {context['ti'].try_number}")

    return callback


class Slow(BaseOperator):
    """Says that it began, and sleeps until somebody ends it."""

    def __init__(self, ends=True, **kwargs):
        super().__init__(**kwargs)
        self.ends = ends
        self.stopped = False

    def execute(self, context):
        import time

        context["ti"].xcom_push(key="began", value=True)
        deadline = time.monotonic() + 120
        while not self.stopped and time.monotonic() < deadline:
            time.sleep(0.1)
        if self.stopped:
            raise RuntimeError("stopped by on_kill")

    def on_kill(self):
        print("on_kill was called")
        self.stopped = self.ends


@dag(schedule=None)
def callbacks():
    around = {name: says(name) for name in ("on_execute_callback", "on_success_callback", "on_failure_callback")}
    around |= {name: says(name) for name in ("on_retry_callback", "on_skipped_callback")}

    @task(**around)
    def succeeds():
        pass

    @task(**around, retries=1, retry_delay=timedelta(seconds=1))
    def fails():
        raise ValueError("on purpose")

    @task(**around)
    def skips():
        from airflow.sdk.exceptions import AirflowSkipException

        raise AirflowSkipException

    succeeds()
    fails()
    skips()
    Slow(task_id="times_out", execution_timeout=timedelta(seconds=2), on_failure_callback=says("on_failure_callback"))


@dag(schedule=None)
def ended_from_outside():
    Slow(task_id="marked_failed")
    Slow(task_id="worker_gets_sigterm", on_failure_callback=says("on_failure_callback"))


callbacks()
ended_from_outside()
