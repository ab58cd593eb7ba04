"""Images that work, images that cannot, and what the author of a DAG reads in each case."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version

import pytest

from tests.support.airflow_stack import AirflowStack, Json
from tests.support.cases import CASES
from tests.support.node import Node

pytestmark = pytest.mark.timeout(1500)

WORKER = version("apache-airflow-core")

Look = Callable[[str], tuple[str, int, list[Json]]]


@pytest.fixture(scope="module", autouse=True)
def finished(sandboxed_stack: AirflowStack, node: Node) -> None:
    """Every case has been run."""
    for name in ("task-3.3.1", "task-old", "old-python"):
        node.load(name)
    cases = [name for name in CASES if name != "slow"]
    for name in cases:
        sandboxed_stack.trigger(name, "case")
    for name in cases:
        sandboxed_stack.wait_for_run(name, "case", seconds=300)


@pytest.fixture
def last(sandboxed_stack: AirflowStack) -> Look:
    """State and number of tries of a case, and the error lines of its last try."""

    def look(name: str) -> tuple[str, int, list[Json]]:
        instance = sandboxed_stack.task_instance(name, "case", "tells")
        lines = sandboxed_stack.log(name, "case", "tells", instance["try_number"])
        errors = [line for line in lines if line["logger"] == "aircell" and line["level"] == "error"]
        return instance["state"], instance["try_number"], errors

    return look


def test_the_workers_own_version(sandboxed_stack: AirflowStack, last: Look) -> None:
    assert last("plain") == ("success", 1, [])
    core, _, node = sandboxed_stack.xcoms("plain", "case", "tells")["return_value"]
    assert core == WORKER
    assert node != __import__("platform").node()


def test_another_release_of_3_3(sandboxed_stack: AirflowStack, last: Look) -> None:
    assert last("other_release") == ("success", 1, [])
    assert sandboxed_stack.xcoms("other_release", "case", "tells")["return_value"][0] == "3.3.1"


@pytest.mark.parametrize(
    ("case", "theirs", "fix"),
    [
        ("too_old", "3.1.8", "Build the image with the worker's version of Airflow"),
        ("old_python", "3.7", "Build the image on Python"),
        ("no_airflow", "no apache-airflow-core", "Install apache-airflow-core"),
    ],
)
def test_an_image_that_cannot_work(last: Look, case: str, theirs: str, fix: str) -> None:
    state, tries, (error,) = last(case)
    assert (state, tries, error["kind"]) == ("failed", 2, "IncompatibleImage")
    assert error["event"].startswith("The image failed")
    assert theirs in error["event"]
    assert f"Airflow {WORKER}" in error["event"]
    assert fix in error["hint"]


def test_an_image_that_is_not_there(last: Look) -> None:
    state, tries, (error,) = last("no_such_image")
    assert (state, tries, error["kind"]) == ("failed", 2, "ImageNotFound")
    assert error["event"].startswith("The image failed")
    assert "localhost/aircell/nowhere:1" in error["event"]


def test_a_spec_that_the_node_forbids(last: Look) -> None:
    state, tries, (error,) = last("forbidden")
    assert (state, tries, error["kind"]) == ("failed", 2, "RefusedByPolicy")
    assert error["event"].startswith("Refused")
    assert error["hint"]


def test_a_mistake_in_the_yaml(last: Look) -> None:
    state, tries, (error,) = last("wrong_key")
    assert (state, tries, error["kind"]) == ("failed", 2, "InvalidSpec")
    assert "wrong_key.yaml, line 2" in error["event"] or "wrong_key.yaml:2" in error["event"]
    assert "imgae" in error["event"]


def test_nothing_is_left_of_any(sandboxed_stack: AirflowStack, node: Node) -> None:
    node.clean()


def test_error_lines_are_one_line_each(sandboxed_stack: AirflowStack) -> None:
    text = sandboxed_stack.log_text("too_old", "case", "tells", 2)
    assert all(json.loads(line)["event"].count("\n") == 0 for line in text.splitlines())
