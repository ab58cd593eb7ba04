"""Tasks that forks of zygotes serve end as on stock Airflow, and a hostile one finds no more than in any sandbox."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from images.build import cache_dir
from tests.airflow.conftest import SANDBOXED
from tests.airflow.test_task_hostile import (  # noqa: F401 - collected here once more, with the fixtures below
    hunt,
    test_a_daemon_does_not_outlive_its_task,
    test_loopback_is_the_only_interface,
    test_no_descriptor_but_its_own,
    test_no_file_of_the_worker,
    test_no_process_of_the_host,
    test_no_socket_answers,
    test_nothing_secret_is_found_in_a_sandbox,
)
from tests.airflow.test_task_life import (  # noqa: F401
    run,
    test_a_sandbox_that_is_killed,
    test_out_of_memory_is_said_with_its_limit_and_retried,
)
from tests.airflow.test_task_parity import test_log_lines, test_states_tries_and_xcoms  # noqa: F401
from tests.support.airflow_stack import AirflowStack, Json, wait_until
from tests.support.node import Node, running
from tests.support.outcomes import Outcomes, run_all

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """An engine that has user namespaces."""
    with running(str(cache_dir() / "bin" / "containerd")) as node:
        yield node


@pytest.fixture(scope="module")
def sandboxed_stack(
    task_stack: AirflowStack, stock: Outcomes, worker_environment: Mapping[str, str], node: Node
) -> Iterator[AirflowStack]:
    """Whose sandboxes are on that node."""
    node.load("task")
    theirs = {"AIRFLOW__SANDBOX_RUNTIME__SOCKET_PATH": node.socket}
    with task_stack.scheduler({**worker_environment, **SANDBOXED, **theirs}):
        yield task_stack


def ready(node: Node) -> bool:
    """Whether there is a fork in each pool."""
    pools = node.pools()
    return bool(pools) and all(pool["kind"] == "zygote" and pool["ready"] for pool in pools)


@pytest.fixture(autouse=True)
def warm(sandboxed_stack: AirflowStack, node: Node) -> None:
    """A zygote serves: the first task makes aircelld make it."""
    if not ready(node):
        assert run(sandboxed_stack, "plain", f"warms-{node.tag}-{len(node.ps(all=True))}") == "success"
        wait_until(lambda: ready(node), "a fork is ready", 60)


@pytest.fixture(scope="module")
def sandboxed(sandboxed_stack: AirflowStack) -> Outcomes:
    return run_all(sandboxed_stack, "forked")


@pytest.fixture(scope="module")
def protected(sandboxed_stack: AirflowStack, node: Node) -> Json:
    """What the second hunter finds: the first starts cold, for without a network it is of another family."""
    hunt(sandboxed_stack, "first")
    wait_until(lambda: ready(node), "a fork is ready", 60)
    return hunt(sandboxed_stack, "forked")


def kinds(node: Node, run_id: str) -> list[str]:
    """How the sandboxes of a run were served."""
    return [each["kind"] for each in node.ps(all=True) if each["labels"].get("aircell.dev/run") == run_id]


def test_forks_have_served_them(sandboxed: Outcomes, protected: Json, node: Node) -> None:
    served = kinds(node, "forked")
    assert len(served) > sum(len(tasks) for tasks in sandboxed.values())
    assert set(served) == {"zygote"}
