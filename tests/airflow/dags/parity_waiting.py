"""Waiting without a worker: sensors that reschedule, deferral and resume."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from airflow.providers.standard.sensors.time_delta import TimeDeltaSensor
from airflow.providers.standard.triggers.temporal import DateTimeTrigger
from airflow.sdk import BaseOperator, PokeReturnValue, dag, get_current_context, task

LATER = 8
"""Seconds; one that is rescheduled before the scheduler has seen it end is taken for failed, in stock Airflow too."""


class Deferring(BaseOperator):
    """Waits in the triggerer, then goes on."""

    def execute(self, context):
        self.log.info("deferring")
        moment = datetime.now(tz=timezone.utc) + timedelta(seconds=1)
        self.defer(trigger=DateTimeTrigger(moment=moment), method_name="resumed", kwargs={"passed": "along"})

    def resumed(self, context, event=None, passed=None):
        self.log.info("resumed")
        return passed


@dag(schedule=None)
def waiting():
    @task.sensor(poke_interval=LATER, timeout=60, mode="reschedule")
    def second_poke():
        started = get_current_context()["ti"].get_first_reschedule_date(get_current_context())
        return PokeReturnValue(is_done=started is not None, xcom_value="seen")

    @task.sensor(poke_interval=LATER, timeout=1, mode="reschedule")
    def never():
        return False

    @task.sensor(poke_interval=0.2, timeout=30, mode="poke")
    def pokes():
        import pathlib

        mark = pathlib.Path("/tmp/poked")
        if mark.exists():
            mark.unlink()
            return True
        mark.touch()
        return False

    second_poke()
    never()
    pokes()
    Deferring(task_id="deferring")
    TimeDeltaSensor(task_id="async_sensor", delta=timedelta(seconds=1), deferrable=True)


waiting()
