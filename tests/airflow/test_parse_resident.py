"""``parse_isolation = image``: files are parsed in forks of residents, with namespaces of their own and without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from images.build import cache_dir
from tests.support.airflow_stack import wait_until
from tests.support.node import Node, processes
from tests.support.parsing import ParsingStack, sandboxed, temporary_stack

pytestmark = pytest.mark.timeout(300)

TIMEOUT = 10
GOOD = """
import os
from airflow.sdk import DAG, Variable
dag = DAG("good", description=f"{os.getuid()} {Variable.get('from_environment')}")
"""
BROKEN = """
from airflow.sdk import DAG
raise LookupError("what the user did wrong")
"""
GREEDY = """
from airflow.sdk import DAG
hog = bytearray(2**30)
"""
STUBBORN = """
import os, signal, subprocess, time
from airflow.sdk import DAG
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
subprocess.Popen(["sleep", "{seconds}"], start_new_session=True)
print("sleeping", flush=True)
time.sleep(3600)
"""
SLEEP = "34567"


@pytest.fixture(scope="module", params=["containerd", str(cache_dir() / "bin" / "containerd")], ids=["1.6", "2.3"])
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    node = Node()
    node.config["containerd"]["binary"] = request.param
    node.start()
    try:
        yield node
    finally:
        node.close()


@pytest.fixture(scope="module")
def stack(node: Node) -> Iterator[ParsingStack]:
    with temporary_stack() as stack:
        stack.environment = {"AIRFLOW_VAR_FROM_ENVIRONMENT": "environment"}
        shared = {"parse_isolation": "image", "memory": "600Mi"}
        limits = {"dag_processor": {"dag_file_processor_timeout": str(TIMEOUT)}}
        stack.configure(sandboxed(node.socket, node.load("task"), **shared), limits)
        stack.write("good.py", GOOD)
        stack.start()
        stack.wait_for_dags("good")
        forked(stack, "good.py")
        yield stack


def forked(stack: ParsingStack, name: str) -> None:
    """Returns once the file has been parsed in a fork from now on."""
    before = stack.parse_log(name).count('"kind":"resident"')
    what = f"a parse of {name} in a resident"
    wait_until(lambda: stack.parse_log(name).count('"kind":"resident"') > before + 1, what, 120, why=stack.why)


def test_a_file_has_what_it_has_in_a_sandbox_of_its_own(stack: ParsingStack) -> None:
    forked(stack, "good.py")
    assert stack.rows("select description, is_stale from dag") == [("50000 environment", 0)]
    assert stack.errors() == {}


def test_an_import_error(stack: ParsingStack) -> None:
    path = stack.write("broken.py", BROKEN)
    error = stack.wait_for_error("broken.py", "LookupError: what the user did wrong")
    assert f'File "{path}", line 3' in error
    path.unlink()
    stack.wait_for_no_error("broken.py")


def test_a_file_that_takes_too_much_memory_is_the_only_one_to_end(stack: ParsingStack) -> None:
    path = stack.write("greedy.py", GREEDY)
    stack.wait_for_error("greedy.py", "the memory limit of 600 MiB was reached")
    path.unlink()
    stack.wait_for_no_error("greedy.py")
    forked(stack, "good.py")
    assert stack.stale() == {"good": False}


def test_a_file_that_takes_too_long_is_ended_with_all_that_it_started(stack: ParsingStack) -> None:
    path = stack.write("stubborn.py", STUBBORN.format(seconds=SLEEP))
    wait_until(lambda: sleeping(), "it runs", 60, why=stack.why)
    killed = f"exceeding the timeout of {TIMEOUT:.2f} seconds. Killing it!"
    wait_until(lambda: killed in stack.component_log("dag-processor"), killed, 60, why=stack.why)
    path.unlink()
    wait_until(lambda: not sleeping(), "all of it is ended", 20, why=stack.why)
    forked(stack, "good.py")
    assert stack.stale() == {"good": False}


def sleeping() -> list[int]:
    return [pid for pid, command in processes() if command[:2] == ["sleep", SLEEP]]


def test_nothing_is_left(stack: ParsingStack, node: Node) -> None:
    stack.stop()
    node.clean()
    assert not list(Path(node.state / "sandboxes").iterdir())
