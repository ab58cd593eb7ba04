"""How tasks end: success, failure, retries, Airflow's own exceptions, exit codes, signals."""

from __future__ import annotations

import os
import signal
import sys
from datetime import datetime, timedelta, timezone

from airflow.sdk import dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException, AirflowRescheduleException, AirflowSkipException

SOON = timedelta(seconds=1)
LATER = timedelta(seconds=8)
"""A task that is rescheduled before the scheduler has seen it end is taken for failed, in stock Airflow too."""


@dag(schedule=None)
def outcomes():
    @task
    def succeeds():
        return "fine"

    @task
    def fails():
        raise ValueError("this is wrong")

    @task(retries=1, retry_delay=SOON)
    def succeeds_at_second_try():
        attempt = get_current_context()["ti"].try_number
        if attempt == 1:
            raise RuntimeError("not yet")
        return attempt

    @task(retries=1, retry_delay=SOON)
    def fails_every_time():
        raise RuntimeError("never")

    @task
    def skips():
        raise AirflowSkipException("nothing to do")

    @task(retries=2, retry_delay=SOON)
    def fails_without_retry():
        raise AirflowFailException("there is no use in trying again")

    @task
    def reschedules():
        if not get_current_context()["ti"].get_first_reschedule_date(get_current_context()):
            raise AirflowRescheduleException(datetime.now(tz=timezone.utc) + LATER)
        return "at last"

    @task(execution_timeout=timedelta(seconds=2))
    def takes_too_long():
        import time

        time.sleep(60)

    succeeds()
    fails()
    succeeds_at_second_try()
    fails_every_time()
    skips()
    fails_without_retry()
    reschedules()
    takes_too_long()


@dag(schedule=None)
def exits():
    @task
    def sys_exit_0():
        sys.exit(0)

    @task
    def sys_exit_3():
        sys.exit(3)

    @task
    def hard_exit_0():
        os._exit(0)

    @task
    def hard_exit_42():
        os._exit(42)

    @task(retries=1, retry_delay=SOON)
    def hard_exit_then_success():
        if get_current_context()["ti"].try_number == 1:
            os._exit(7)

    @task
    def aborts():
        os.kill(os.getpid(), signal.SIGABRT)

    @task
    def segfaults():
        os.kill(os.getpid(), signal.SIGSEGV)

    sys_exit_0()
    sys_exit_3()
    hard_exit_0()
    hard_exit_42()
    hard_exit_then_success()
    aborts()
    segfaults()


outcomes()
exits()
