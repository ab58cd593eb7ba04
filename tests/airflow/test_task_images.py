"""Images that work, images that cannot, and what the author of a DAG reads in each case."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.metadata import version

import pytest

from tests.support.airflow_stack import AirflowStack, Json
from tests.support.archive_image import ArchiveImage
from tests.support.cases import CASES, PRIVATE
from tests.support.images import archive
from tests.support.node import Node
from tests.support.registry import serving

pytestmark = pytest.mark.timeout(1500)

WORKER = version("apache-airflow-core")

Look = Callable[[str], tuple[str, int, list[Json]]]


@pytest.fixture(scope="module")
def team(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The node has the credentials ``team``, and has pulled the image that takes them."""
    password = tmp_path_factory.mktemp("team") / "password"
    password.write_text("te4m-secret")
    with serving(ArchiveImage(archive("task"), {"etc/unlike": "the public one"})) as registry:
        registry.any_name = True
        registry.credentials = ("robot", password.read_text())
        name = PRIVATE.partition("/")[0]
        node.serve_at(name, f"http://{registry.host}")
        settings = {"registry": name, "username": "robot", "password_file": str(password)}
        with node.configured(registry_credentials={"team": settings}):
            assert list(node.client.call("pull", backend="cri", image=PRIVATE, credentials="team"))[-1]["image"]
            yield
    assert "te4m-secret" not in node.log.read_text()


@pytest.fixture(scope="module", autouse=True)
def finished(sandboxed_stack: AirflowStack, node: Node, team: None) -> None:
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


def test_a_private_image_on_the_node_is_for_the_dag_whose_credentials_its_registry_accepts(last: Look) -> None:
    assert last("private_of_ones_own") == ("success", 1, [])
    state, tries, (error,) = last("private_of_others")
    assert (state, tries, error["kind"]) == ("failed", 2, "ImageUnauthorized")
    assert "is on this node, but its registry does not give it to somebody without credentials" in error["event"]
    assert "registry_credentials" in error["hint"]


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
