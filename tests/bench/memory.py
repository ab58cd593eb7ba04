"""What a sandbox takes: its own processes (agent, job), and what the engine has beside them (shim, pause)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from tests.bench import jobs
from tests.bench.kinds import KINDS
from tests.bench.lab import Lab
from tests.bench.live import live, proportional
from tests.bench.results import Series
from tests.support.node import Node, processes


def measure(lab: Lab) -> Iterator[tuple[str, Series]]:
    """Airflow's runner imported, in as many sandboxes at a time as there are samples; a job that just waits."""
    lab.engine.load("task")
    count = lab.samples(full=8, quick=2)
    own: dict[str, list[float]] = {}
    engine: dict[str, list[float]] = {}
    wanted = jobs.request("task", waits=True)
    for kind in lab.kinds:
        node = lab.node(kind)
        with live(node, 1, wanted):
            pass  # from then on the shape is known
        lab.settle()
        with live(node, count, wanted) as ids:
            lab.settle()
            for state, names in _states(kind, node, ids).items():
                taken = [_processes(node, name) for name in names]
                own[state] = [_sum(each) for each in taken]
                if not _are_forks(names, taken):
                    engine[state] = [_sum(_beside(each)) for each in taken]
    yield "own processes", Series(unit="MiB", samples=own)
    yield "the engine's beside them", Series(unit="MiB", samples=engine)


def _states(kind: str, node: Node, ids: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """The folders of sandboxes by what these are doing, but for those that were made cold when none was left."""
    serving = {str(each["made_as"]): each for each in node.ps() if each["id"] in ids}
    own = {name for name, each in serving.items() if KINDS[kind].mark.items() <= each.items()}
    states = {f"{kind}, with its job": sorted(own)}
    if KINDS[kind].warm:
        others = {path.name for path in (node.state / "sandboxes").iterdir()} - set(serving)
        zygotes = {name for name in others if name.startswith("zygote-")}
        states[f"{kind}, waiting"] = sorted(others - zygotes)
        if zygotes:
            states["the zygote itself"] = sorted(zygotes)
    return states


def _processes(node: Node, sandbox: str) -> list[psutil.Process]:
    """Those that see the sandbox's folder: in its container, or in the shell of a fork."""
    found = []
    for pid, _ in processes():
        with contextlib.suppress(OSError):
            if f"/sandboxes/{sandbox}/run " in Path(f"/proc/{pid}/mountinfo").read_text():
                found.append(psutil.Process(pid))
    assert found, f"no process is in {sandbox} on {node.tag}"
    return found


def _shim(own: Sequence[psutil.Process]) -> psutil.Process:
    (shim,) = {parent for each in own if (parent := each.parent()) is not None and "shim" in parent.name()}
    return shim


def _are_forks(names: Sequence[str], taken: Sequence[Sequence[psutil.Process]]) -> bool:
    """Then their shim is their zygote's."""
    return len(names) > 1 and len({_shim(own) for own in taken}) == 1


def _beside(own: Sequence[psutil.Process]) -> list[psutil.Process]:
    shim = _shim(own)
    return [shim, *(each for each in shim.children(recursive=True) if each.name() == "pause")]


def _sum(found: Sequence[psutil.Process]) -> float:
    return sum(map(proportional, found))
