"""A task that hunts for Airflow's secrets finds them on stock Airflow, and nothing in a sandbox."""

from __future__ import annotations

import json
import os
import re
import socket
import time

import pytest

from tests.support.airflow_stack import AirflowStack, Json
from tests.support.node import Node, processes

pytestmark = pytest.mark.timeout(1500)

SECRET = re.compile(r"can4ry|eyJ[\w-]{16,}\.")


def addresses(stack: AirflowStack) -> list[str]:
    """The api-server, by every address of this host."""
    names = {"127.0.0.1", *socket.gethostbyname_ex(socket.gethostname())[2]}
    return [f"{name}:{stack.port}" for name in sorted(names)]


def hunt(stack: AirflowStack, run_id: str) -> Json:
    stack.trigger("hostile", run_id, {"addresses": addresses(stack)})
    assert stack.wait_for_run("hostile", run_id, seconds=300) == "success", stack.log_text("hostile", run_id, "hunts")
    found: Json = stack.xcoms("hostile", run_id, "hunts")["return_value"]
    return found


@pytest.fixture(scope="module")
def unprotected(task_stack: AirflowStack, worker_environment: dict[str, str], stock: object) -> Json:
    with task_stack.scheduler(worker_environment):
        return hunt(task_stack, "stock")


@pytest.fixture(scope="module")
def protected(sandboxed_stack: AirflowStack) -> Json:
    return hunt(sandboxed_stack, "sandboxed")


@pytest.mark.parametrize("secret", ["environment", "fernet", "jwt", "database", "backend"])
def test_the_hunter_finds_each_secret_on_stock_airflow(unprotected: Json, secret: str) -> None:
    assert f"can4ry-{secret}-" in json.dumps(unprotected)


def test_the_hunter_finds_everything_else_on_stock_airflow(unprotected: Json) -> None:
    assert "eyJ" in json.dumps(unprotected["own memory"])
    assert any(path.endswith("airflow.cfg") for path in unprotected["files"])
    assert unprotected["reached"]
    assert unprotected["unix sockets"]
    assert any("airflow" in command for command in unprotected["processes"])


def test_nothing_secret_is_found_in_a_sandbox(protected: Json) -> None:
    assert SECRET.findall(json.dumps(protected)) == []


def test_no_file_of_the_worker(protected: Json) -> None:
    assert protected["files"] == []


def test_no_process_of_the_host(protected: Json) -> None:
    names = [command.split(" ")[0].split("/")[-1] for command in protected["processes"]]
    assert len(names) == 2
    assert "/run/aircell/" in protected["processes"][0], "the agent, or the zygote that it is a fork of"


def test_no_socket_answers(protected: Json) -> None:
    assert protected["unix sockets"] == []
    assert protected["reached"] == []


def test_loopback_is_the_only_interface(protected: Json) -> None:
    assert protected["network interfaces"] == ["lo"]


def test_no_descriptor_but_its_own(protected: Json) -> None:
    assert [each for each in protected["descriptors"] if "socket" not in each and "/proc" not in each] == []
    # Standard streams, the four channels themselves, and the copy of stderr that Airflow keeps for its last words.
    assert len([each for each in protected["descriptors"] if "socket" in each]) <= 3 + 4 + 1


def test_a_daemon_does_not_outlive_its_task(sandboxed_stack: AirflowStack, node: Node) -> None:
    name = f"leftover-{os.getpid()}-{time.monotonic_ns()}"
    sandboxed_stack.trigger("leaves_a_daemon", name, {"name": name})
    assert sandboxed_stack.wait_for_run("leaves_a_daemon", name) == "success"
    assert sandboxed_stack.xcoms("leaves_a_daemon", name, "forks_twice")["return_value"] >= 1
    assert [pid for pid, command in processes() if name in command] == []
