"""What tasks do to each other: XCom, mapping, groups, setup and teardown, trigger rules, branches."""

from __future__ import annotations

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import dag, setup, task, task_group, teardown


@dag(schedule=None)
def xcom():
    @task
    def one_byte():
        return "x"

    @task
    def three_megabytes():
        return "abc" * 2**20

    @task(multiple_outputs=True)
    def several():
        return {"number": 1, "text": "two", "list": [3, {"four": None}]}

    @task
    def measures(small, large, number):
        import hashlib

        return [small, len(large), hashlib.sha256(large.encode()).hexdigest(), number]

    measures(one_byte(), three_megabytes(), several()["number"])


@dag(schedule=None)
def flow():
    @task
    def numbers():
        return [1, 2, 3]

    @task
    def doubles(number):
        if number == 2:
            raise ValueError("two is refused")
        return number * 2

    @task(trigger_rule="all_done")
    def collects(results):
        return sorted(results)

    @task_group
    def group():
        @task
        def inside():
            return "from the group"

        inside()

    @setup
    @task
    def makes():
        print("made")

    @teardown
    @task
    def removes():
        print("removed")

    @task
    def fails_between():
        raise RuntimeError("the teardown must run")

    @task.branch
    def chooses():
        return "chosen"

    collects(doubles.expand(number=numbers()))
    group()
    made = makes()
    made >> fails_between() >> removes().as_teardown(setups=made)
    chooses() >> [EmptyOperator(task_id="chosen"), EmptyOperator(task_id="not_chosen")]

    @task(trigger_rule="one_failed")
    def runs_because_one_failed():
        return "called"

    @task
    def upstream_fails():
        raise RuntimeError("as planned")

    @task
    def never_runs():
        return "wrong"

    bad = upstream_fails()
    bad >> runs_because_one_failed()
    bad >> never_runs()


xcom()
flow()
