"""A task that tells what its sandbox was configured to be; see ``configured.yaml`` beside it."""

import os

from airflow.sdk import DAG, task

with DAG("configured", schedule=None):

    @task(executor_config={"sandbox": {"environment": {"FROM_EXECUTOR_CONFIG": "executor_config"}}})
    def look() -> dict[str, object]:
        names = ("FROM_YAML", "FROM_EXECUTOR_CONFIG")
        return {"uid": os.getuid(), **{name: os.environ.get(name) for name in names}}

    look()
