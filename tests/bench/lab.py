"""What benchmarks measure on: one engine, an aircelld for each kind of sandbox, started when first asked for."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from images.build import cache_dir
from tests.bench import dags, executors
from tests.bench.kinds import KINDS
from tests.support.airflow_stack import AirflowStack
from tests.support.node import Node

ROOT = Path(__file__).resolve().parents[2]
STOCK = "stock"
"""The way of running a task that has no sandbox."""
Effort: TypeAlias = Literal["smoke", "quick", "full"]

CONTAINERD = os.environ.get("AIRCELL_TEST_CONTAINERD") or str(cache_dir() / "bin" / "containerd")
"""The long-term release unless told otherwise: the one that knows all kinds."""
_SETTLE_SECONDS = 120.0


class Lab(contextlib.ExitStack):
    """To be used by ``with``: what was started ends with it."""

    def __init__(self, effort: Effort, kinds: Sequence[str] = tuple(KINDS)) -> None:
        super().__init__()
        self.effort = effort
        self.kinds = kinds
        self._nodes: dict[str, Node] = {}

    def samples(self, *, full: int, quick: int) -> int:
        """How many to take; two where it only has to be seen that it works."""
        return {"smoke": 2, "quick": quick, "full": full}[self.effort]

    @cached_property
    def engine(self) -> Node:
        """The node whose containerd all others use; it makes cold sandboxes."""
        node = Node()
        node.config["containerd"]["binary"] = CONTAINERD
        self._configure(node, "cold")
        self.callback(node.close)
        node.start()
        return node

    def node(self, kind: str) -> Node:
        """The aircelld that makes sandboxes of that kind."""
        if kind == "cold":
            return self.engine
        if kind not in self._nodes:
            self._nodes[kind] = self.fresh_node(kind)
        return self._nodes[kind]

    def fresh_node(self, kind: str) -> Node:
        """An aircelld of that kind that has done nothing yet."""
        node = Node.beside(self.engine, self.folder())
        self._configure(node, kind)
        self.callback(_leave, node)
        node.start()
        return node

    @cached_property
    def airflow(self) -> AirflowStack:
        """An Airflow whose scheduler has an executor for stock and one for each kind, with the DAGs of ``dags.py``."""
        home = self.folder()
        (home / "dags").mkdir()
        ways = {STOCK: "LocalExecutor", **{kind: executors.path(kind) for kind in self.kinds}}
        sandbox = {"image": self.engine.load("task")}
        for way, executor in ways.items():
            dags.write(home / "dags", f"small_{way}", executor=executor, sandbox=sandbox)
        local = "airflow.dag_processing.bundles.local.LocalDagBundle"
        sockets = {kind: self.node(kind).socket for kind in self.kinds}
        stack = AirflowStack(
            home=home,
            bundles=[{"name": "bench", "classpath": local, "kwargs": {"path": str(home / "dags")}}],
            config={"core": {"executor": ",".join(ways.values())}},
            environment={"PYTHONPATH": str(ROOT), executors.SOCKETS: json.dumps(sockets)},
        )
        self.callback(stack.stop)
        stack.start()
        self.enter_context(stack.scheduler())
        return stack

    def folder(self) -> Path:
        """A new one, with a short name, that everybody may read."""
        path = Path(tempfile.mkdtemp(prefix="ab", dir="/tmp"))
        self.callback(shutil.rmtree, path)
        path.chmod(0o755)
        return path

    def settle(self, kind: str, node: Node | None = None) -> None:
        """Returns once every pool of that kind is full: nothing is being made, and the next job finds one ready.

        On another ``node`` than the kind's own where one is given.
        """
        if kind in KINDS and KINDS[kind].warm:
            node = node or self.node(kind)
            node.wait_until(functools.partial(_full, node), f"the pools of {kind} are full", _SETTLE_SECONDS)

    @staticmethod
    def served(kind: str, sandbox: Mapping[str, Any]) -> None:
        """Raises AssertionError unless the sandbox, as ``ps`` or ``inspect`` has it, was of that kind."""
        wanted = KINDS[kind].mark
        seen = {name: sandbox.get(name) for name in wanted}
        assert seen == wanted, f"sandbox {sandbox['id']} was to be {kind}, and is {seen}"

    def _configure(self, node: Node, kind: str) -> None:
        node.config |= {**KINDS[kind].config, "log": {"level": "info"}}


def _full(node: Node) -> bool:
    pools = node.answer("pools")["pools"]
    return bool(pools) and all(pool["ready"] >= pool["target"] for pool in pools)


def _leave(node: Node) -> None:
    """Ends an aircelld whose engine is another's. Its sandboxes go first: they would live on."""
    if not node.alive:
        return
    for sandbox in node.ps():
        node.answer("stop", sandbox=sandbox["id"], grace=0)
    node.stop()
