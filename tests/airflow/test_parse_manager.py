"""The DAG processor's loop over sandboxes: callbacks, slots, pulls, time-outs. One that parses each file once."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from tests.support.airflow_stack import wait_until
from tests.support.node import Node
from tests.support.parsing import ParsingStack, sandboxed, temporary_stack

pytestmark = pytest.mark.timeout(300)

SLOTS = 2
TIMEOUT = 20
PLAIN = """
from airflow.sdk import DAG
dag = DAG("{dag_id}")
"""
WITH_CALLBACK = """
import os
from airflow.sdk import DAG

def tell(context):
    print("callback of", context["dag"].dag_id, "for", context["reason"], "as uid", os.getuid(), "pid 1 is",
          open("/proc/1/cmdline").read().split("\\0")[1])

dag = DAG("calls_back", on_failure_callback=tell)
"""
TIMED = """
import time
from airflow.sdk import DAG
begin = time.time()
time.sleep(2)
dag = DAG("{dag_id}", description=f"{{begin}} {{time.time()}}")
"""
STUBBORN = """
import os, signal, subprocess, time
from airflow.sdk import DAG
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
subprocess.Popen(["sleep", "3600"], start_new_session=True)
print("sleeping", flush=True)
time.sleep(3600)
"""


@pytest.fixture(scope="module")
def stack(node: Node) -> Iterator[ParsingStack]:
    with temporary_stack() as stack:
        limits = {
            "min_file_process_interval": "600",
            "parsing_processes": str(SLOTS),
            "dag_file_processor_timeout": str(TIMEOUT),
        }
        stack.configure(sandboxed(node.socket, node.load("task")), {"dag_processor": limits})
        stack.start()
        yield stack


def test_a_callback_runs_in_the_sandbox_of_its_file(stack: ParsingStack) -> None:
    stack.write("calls_back.py", WITH_CALLBACK)
    stack.wait_for_dags("calls_back")
    stack.ask_for_callback("calls_back", "calls_back.py")
    said = "callback of calls_back for a test as uid 50000 pid 1 is /run/aircell/agent.py"
    wait_until(lambda: said in stack.parse_log("calls_back.py"), said, 90, why=stack.why)
    assert stack.errors() == {}


def test_no_more_files_are_parsed_at_once_than_configured(stack: ParsingStack) -> None:
    names = [f"timed_{number}" for number in range(2 * SLOTS)]
    for name in names:
        stack.write(f"{name}.py", TIMED.format(dag_id=name))
    stack.wait_for_dags(*names)
    spans = [tuple(map(float, text.split())) for (text,) in stack.rows("select description from dag where description")]
    at_once = [sum(begin <= moment < end for begin, end in spans) for moment, _ in spans]
    assert len(spans) == len(names)
    assert 1 <= max(at_once) <= SLOTS


def test_images_that_are_pulled_hold_no_slot(stack: ParsingStack) -> None:
    names = [f"pulled_{number}.py" for number in range(SLOTS + 1)]
    with registry_that_never_answers() as registry:
        for name in names:
            stack.write(name, PLAIN.format(dag_id=name))
            stack.write(name.replace(".py", ".yaml"), f"sandbox: {{image: '{registry}/slow:1'}}\n")
        pulling = "Pulling the sandbox's image"
        wait_until(lambda: any(pulling in stack.parse_log(name) for name in names), pulling, 60, why=stack.why)
        stack.write("meanwhile.py", PLAIN.format(dag_id="meanwhile"))
        stack.wait_for_dags("meanwhile")
        assert stack.errors() == {}
    for name in names:
        error = stack.wait_for_error(name, "could not parse this file in a sandbox; its DAGs stay as they are")
        assert f"{registry}/slow:1" in error


def test_a_timeout_ends_the_whole_sandbox(stack: ParsingStack, node: Node) -> None:
    stack.write("stubborn.py", STUBBORN)
    wait_until(lambda: "sleeping" in stack.parse_log("stubborn.py"), "the sleep", 60, why=stack.why)
    assert any(sandbox["labels"].get("aircell.dev/file") == "stubborn.py" for sandbox in node.ps())
    killed = "exceeding the timeout of 20.00 seconds. Killing it!"
    wait_until(lambda: killed in stack.component_log("dag-processor"), killed, TIMEOUT + 40)
    node.clean()
    stack.write("afterwards.py", PLAIN.format(dag_id="afterwards"))
    stack.wait_for_dags("afterwards")


@contextlib.contextmanager
def registry_that_never_answers() -> Iterator[str]:
    """Accepts connections and says nothing, until it is closed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"
