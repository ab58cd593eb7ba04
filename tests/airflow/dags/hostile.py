"""A task that hunts for everything of Airflow's that it must not have, and tells what it found."""

from __future__ import annotations

from airflow.sdk import dag, get_current_context, task


@dag(schedule=None, params={"addresses": []})
def hostile():
    @task
    def hunts():
        import hunt

        return hunt.everything(get_current_context()["params"]["addresses"])

    hunts()


hostile()
