"""A DAG file with requirements that its image lacks, parsed and run on a real Airflow; and one that cannot have its."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.node import Node
from tests.support.package_index import serving
from tests.support.parsing import ParsingStack, sandboxed, temporary_stack

pytestmark = pytest.mark.timeout(300)

DAG = """
import greeting
from airflow.sdk import DAG, task

with DAG("greets", schedule=None, description=greeting.SAYS):

    @task
    def greet():
        print(greeting.SAYS, "from", greeting.__file__)

    greet()
"""


@pytest.fixture
def stack(node: Node) -> Iterator[ParsingStack]:
    with serving({"greeting": "SAYS = 'hello'\n"}) as index, temporary_stack() as stack:
        node.pip_conf.write_text(index.pip_conf(node.gateway))
        stack.configure(sandboxed(node.socket, node.load("task")))
        stack.write("greets.py", DAG)
        stack.write("greets.yaml", "sandbox: {requirements_file: needs.txt}\n")
        stack.write("needs.txt", "greeting==1.0  # says hello\n")
        stack.write("wants.py", DAG)
        stack.write("wants.yaml", "sandbox: {requirements: [no-such-thing]}\n")
        stack.start()
        yield stack


def test_a_dag_file_gets_what_it_requires_or_an_error_that_names_it(stack: ParsingStack) -> None:
    error = stack.wait_for_error("wants.py", "no package index of this node has no-such-thing")
    assert "No matching distribution found" in error
    stack.wait_for_dags("greets")
    assert ("hello",) in stack.rows("select description from dag where dag_id = 'greets'")
    assert "Building the sandbox's image" in stack.parse_log("greets.py")
    tested = stack.run("sandbox", "test", "greets", "greet")
    assert "hello from /opt/aircell/requirements/greeting.py" in tested
