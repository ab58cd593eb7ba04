"""The life of sandboxed tasks: slow pulls, cancelled launches, crashes, memory, bundles, processes of their own."""

from __future__ import annotations

import json
import os
import platform
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.airflow.conftest import SANDBOXED, commit
from tests.support.airflow_stack import AirflowStack, Json, wait_until
from tests.support.images import archive
from tests.support.node import Node
from tests.support.outcomes import supervisor_of, wait_until_begun
from tests.support.registry import Registry, serving

pytestmark = pytest.mark.timeout(1500)


def ours(stack: AirflowStack, *where: object) -> list[Json]:
    """The lines of a task's log that Aircell wrote."""
    return [line for line in stack.log(*where) if line["logger"] == "aircell"]  # type: ignore[arg-type]


def run(stack: AirflowStack, dag_id: str, run_id: str = "life") -> str:
    stack.trigger(dag_id, run_id)
    return stack.wait_for_run(dag_id, run_id, seconds=180)


# --- every task ---------------------------------------------------------------------------------------------------


def test_tasks_of_every_queue_are_sandboxed(sandboxed_stack: AirflowStack) -> None:
    assert run(sandboxed_stack, "queues") == "success"
    nodes = [sandboxed_stack.xcoms("queues", "life", task)["return_value"] for task in ("default", "other")]
    assert platform.node() not in nodes
    assert nodes[0] != nodes[1]


def test_the_log_tells_of_the_sandbox(sandboxed_stack: AirflowStack, node: Node) -> None:
    assert run(sandboxed_stack, "plain") == "success"
    requested, image, ready = ours(sandboxed_stack, "plain", "life", "tells")
    assert requested["event"] == "Sandbox requested"
    assert requested["image"] == image["image"] == node.load("task")
    assert ready["event"] == "Sandbox ready"
    assert ready["airflow_core"] == "3.3.2"


# --- starting -----------------------------------------------------------------------------------------------------


class Archived:
    """An image of the tests as a registry serves it."""

    def __init__(self, path: Path) -> None:
        with tarfile.open(path) as content:
            files = {each.name: each for each in content if each.isfile()}
            self.blobs = {
                f"sha256:{Path(name).name}": content.extractfile(file).read()  # type: ignore[union-attr]
                for name, file in files.items()
                if name.startswith("blobs/")
            }
            index = json.loads(content.extractfile(files["index.json"]).read())  # type: ignore[union-attr]
        self.index: str = index["manifests"][0]["digest"]


@pytest.fixture
def registry() -> Iterator[Registry]:
    with serving(Archived(archive("task"))) as registry:
        yield registry


def use_image(stack: AirflowStack, dag_id: str, image: str) -> None:
    content = yaml.safe_dump({"sandbox": {"image": image, "pull_policy": "always"}})
    (stack.home / "dags" / f"{dag_id}.yaml").write_text(content)


def test_a_slow_pull_is_no_zombie(
    sandboxed_stack: AirflowStack, worker_environment: dict[str, str], registry: Registry
) -> None:
    """The image takes more than twice as long as the scheduler waits for a heartbeat."""
    impatient = {
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "12",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
    }
    registry.open.clear()
    use_image(sandboxed_stack, "slow", registry.reference())
    with sandboxed_stack.scheduler({**worker_environment, **SANDBOXED, **impatient}):
        sandboxed_stack.trigger("slow", "life")
        sandboxed_stack.wait_for_state("slow", "life", "tells", "running")
        wait_until(lambda: registry.asked, "the pull has begun", 30)
        registry.open.wait(28)
        assert sandboxed_stack.states("slow", "life") == {"tells": "running"}
        registry.open.set()
        assert sandboxed_stack.wait_for_run("slow", "life", seconds=120) == "success"
    assert sandboxed_stack.task_instance("slow", "life", "tells")["try_number"] == 1
    pulling = [line for line in ours(sandboxed_stack, "slow", "life", "tells") if line["event"].startswith("Pulling")]
    assert 1 <= len(pulling) <= 5
    assert pulling[0]["image"] == registry.reference()


def test_a_task_marked_failed_while_its_image_is_pulled(
    sandboxed_stack: AirflowStack, registry: Registry, node: Node
) -> None:
    registry.open.clear()
    use_image(sandboxed_stack, "slow", registry.reference())
    sandboxed_stack.trigger("slow", "cancelled")
    sandboxed_stack.wait_for_state("slow", "cancelled", "tells", "running")
    wait_until(lambda: registry.asked, "the pull has begun", 30)
    sandboxed_stack.set_state("slow", "cancelled", "tells", "failed")
    log = ("slow", "cancelled", "tells")
    wait_until(lambda: "Task killed!" in sandboxed_stack.log_text(*log), "the supervisor has ended it", 20)
    node.clean()


# --- ending -------------------------------------------------------------------------------------------------------


def test_a_sandbox_that_is_killed(sandboxed_stack: AirflowStack, node: Node) -> None:
    run_id = f"killed-{node.tag}"
    sandboxed_stack.trigger("waits", run_id)
    wait_until_begun(sandboxed_stack, "waits", run_id, "sleeps")
    [made_as] = [each["made_as"] for each in node.ps() if each["labels"].get("aircell.dev/run") == run_id]
    os.kill(node.agent_pid(made_as), signal.SIGKILL)
    assert sandboxed_stack.wait_for_run("waits", run_id, seconds=60) == "failed"
    text = sandboxed_stack.log_text("waits", run_id, "sleeps")
    assert "out of memory" not in text.lower()
    assert "ended from outside the sandbox" in text
    node.clean()


def test_a_worker_that_is_killed_takes_its_sandbox_along(sandboxed_stack: AirflowStack, node: Node) -> None:
    sandboxed_stack.trigger("waits", "orphaned")
    wait_until_begun(sandboxed_stack, "waits", "orphaned", "sleeps")
    supervisor_of(sandboxed_stack.task_instance("waits", "orphaned", "sleeps")).kill()
    node.clean()


def test_what_a_task_can_make_its_supervisor_keep_is_bounded(sandboxed_stack: AirflowStack) -> None:
    assert run(sandboxed_stack, "floods") == "failed"
    assert sandboxed_stack.states("floods", "life") == {"writes_one_line": "success", "sends_garbage": "failed"}
    (dropped,) = [
        line for line in ours(sandboxed_stack, "floods", "life", "writes_one_line") if "dropped" in line["event"]
    ]
    assert "stdout is dropped: the sandbox sent a line of more than" in dropped["event"]
    (ended,) = [line for line in ours(sandboxed_stack, "floods", "life", "sends_garbage") if line["level"] == "error"]
    assert "it sent a message of 4294967295 bytes" in ended["event"]


def test_out_of_memory_is_said_with_its_limit_and_retried(sandboxed_stack: AirflowStack, node: Node) -> None:
    where = ("eats_memory", node.tag, "eats")
    assert run(sandboxed_stack, "eats_memory", node.tag) == "success"
    assert sandboxed_stack.task_instance(*where)["try_number"] == 2
    (line,) = [line for line in ours(sandboxed_stack, *where, 1) if line["level"] == "error"]
    assert "memory limit of 512 MiB" in line["event"]
    assert "Likely out of memory error (OOM)" in sandboxed_stack.log_text(*where, 1)


def test_nothing_waits_at_the_end(sandboxed_stack: AirflowStack) -> None:
    """Stock Airflow may sleep for the heartbeat interval when all sockets close before the exit is seen."""
    run(sandboxed_stack, "plain", "tail")
    lines = sandboxed_stack.log("plain", "tail", "tells")
    finished = sandboxed_stack.task_instance("plain", "tail", "tells")["end_date"]
    assert lines[-1]["timestamp"][:19] <= finished[:19]


# --- files and processes ------------------------------------------------------------------------------------------


def test_a_task_can_write_where_it_starts(sandboxed_stack: AirflowStack) -> None:
    assert run(sandboxed_stack, "writes_a_file") == "success"
    assert sandboxed_stack.xcoms("writes_a_file", "life", "writes")["return_value"] == "/tmp"


def test_another_program_takes_over_requests_and_logs(sandboxed_stack: AirflowStack) -> None:
    assert run(sandboxed_stack, "logs_from_a_new_process") == "success"
    lines = sandboxed_stack.log("logs_from_a_new_process", "life", "starts_another")
    found = [
        (line["logger"], line["level"], line["event"], line.get("key")) for line in lines if "another" in line["logger"]
    ]
    assert found == [
        ("another", "warning", "from another program", 7),
        ("another", "info", 'it reads {"color": "blue"}', None),
    ]


def test_a_run_keeps_the_version_of_its_git_bundle(sandboxed_stack: AirflowStack) -> None:
    stack = sandboxed_stack
    first = stack.get("dags/versioned")["bundle_version"]
    assert run(stack, "versioned", "first") == "success"
    second = commit(stack.home / "repository", "second")
    stack.run("dags", "reserialize", "--bundle-name", "git")
    wait_until(lambda: stack.get("dags/versioned")["bundle_version"] == second, "the new version", 60)
    assert run(stack, "versioned", "second") == "success"
    for run_id, version in (("first", first), ("second", second)):
        text, path = stack.xcoms("versioned", run_id, "tells")["return_value"]
        assert (text, Path(path).parent.name) == (run_id, version)
        assert [line for line in stack.log("versioned", run_id, "tells") if line["level"] == "error"] == []
