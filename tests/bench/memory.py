"""What a sandbox takes: its own processes (agent, job), and what the engine has beside them (shim, pause)."""

from __future__ import annotations

from collections.abc import Iterator

import psutil

from tests.bench import jobs
from tests.bench.kinds import KINDS
from tests.bench.lab import Lab
from tests.bench.live import live, proportional
from tests.bench.results import Series
from tests.support.node import Node


def measure(lab: Lab) -> Iterator[tuple[str, Series]]:
    """Airflow's runner imported, in as many sandboxes at a time as there are samples; a job that just waits."""
    lab.engine.load("task")
    count = lab.samples(full=8, quick=2)
    own: dict[str, list[float]] = {}
    engine: dict[str, list[float]] = {}
    for kind in lab.kinds:
        node = lab.node(kind)
        with live(node, count, jobs.request("task", waits=True)) as ids:
            lab.settle(kind)
            serving = [str(each["made_as"]) for each in node.ps() if each["id"] in ids]
            states = {f"{kind}, with its job": serving}
            if KINDS[kind].warm:
                folders = [path.name for path in (node.state / "sandboxes").iterdir()]
                states[f"{kind}, waiting"] = sorted(set(folders) - set(serving))
            for state, names in states.items():
                taken = [_sandbox(node, name) for name in names]
                own[state], engine[state] = [each[0] for each in taken], [each[1] for each in taken]
    yield "own processes", Series(unit="MiB", samples=own)
    yield "the engine's beside them", Series(unit="MiB", samples=engine)


def _sandbox(node: Node, name: str) -> tuple[float, float]:
    """MiB of the agent with all below it, and of the shim with what else it has."""
    agent = psutil.Process(node.agent_pid(name))
    own = [agent, *agent.children(recursive=True)]
    shim = agent.parent()
    assert shim is not None
    others = [shim, *(each for each in shim.children(recursive=True) if each not in own)]
    return sum(map(proportional, own)), sum(map(proportional, others))
