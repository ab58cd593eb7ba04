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
from tests.bench.libraries import libraries
from tests.support.airflow_stack import AirflowStack
from tests.support.dockerd import Dockerd
from tests.support.images import reference
from tests.support.node import Node, run
from tests.support.postgres import Postgres

ROOT = Path(__file__).resolve().parents[2]
STOCK = "stock"
"""The way of running a task that has no sandbox."""
DOCKER_OPERATOR, CONTAINER = "DockerOperator", "execute_workload"
"""A stock task that starts a container, and an executor that runs each task in one, as KubernetesExecutor's pods do."""
Effort: TypeAlias = Literal["smoke", "quick", "full"]

CONTAINERD = os.environ.get("AIRCELL_TEST_CONTAINERD") or str(cache_dir() / "bin" / "containerd")
"""The long-term release unless told otherwise: the one that knows all kinds."""
_SETTLE_SECONDS = 120.0


class Lab(contextlib.ExitStack):
    """To be used by ``with``: what was started ends with it."""

    def __init__(self, effort: Effort) -> None:
        super().__init__()
        self.effort = effort
        self.kinds = tuple(kind for kind in KINDS if not KINDS[kind].only)
        self._nodes: dict[str, Node] = {}
        self._beside: list[Node] = []

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
        self._beside.append(node)
        return node

    def drain(self) -> None:
        """Ends what is kept ready, so that the next benchmark finds nothing of the last."""
        for node in self._beside:
            node.answer("drain")

    @cached_property
    def airflow(self) -> AirflowStack:
        """An Airflow whose scheduler has an executor for each way, with the DAGs of ``dags.py``."""
        home = self.folder()
        bundle = home / "dags"
        bundle.mkdir()
        for image in dags.IMAGES:
            self.engine.load(image)
        ways = {STOCK: "LocalExecutor", **{kind: executors.path(kind) for kind in self.kinds}}
        for way, executor in ways.items():
            dags.write(bundle, way, executor)
        environment = self.python_path()
        environment[executors.SOCKETS] = json.dumps({kind: self.node(kind).socket for kind in self.kinds})
        if self.containers:
            ways[CONTAINER] = executors.path("Container")
            dags.write_container(bundle, CONTAINER, ways[CONTAINER])
            dags.write_docker_operator(bundle, DOCKER_OPERATOR, self.docker.host)
            docker = ["docker", "--host", self.docker.host, "run", "--rm", "--network", "host"]
            docker += ["--volume", f"{bundle}:{bundle}:ro", reference(dags.IMAGES[0])]
            environment[executors.DOCKER_RUN] = json.dumps(docker)
        local = "airflow.dag_processing.bundles.local.LocalDagBundle"
        stack = AirflowStack(
            home=home,
            bundles=[{"name": "bench", "classpath": local, "kwargs": {"path": str(bundle)}}],
            config={
                # Slots enough that it is the CPU that tasks wait for, and not the scheduler's next turn.
                "core": {"executor": ",".join(ways.values()), "parallelism": "16"},
                "database": self.database.airflow_options(),
            },
            environment=environment,
        )
        self.callback(stack.stop)
        stack.start()
        self.enter_context(stack.scheduler())
        return stack

    @cached_property
    def database(self) -> Postgres:
        """Airflow's, in memory, or the disk decides how fast stock is."""
        postgres = Postgres(self.folder("/dev/shm"))
        self.callback(postgres.stop)
        postgres.start()
        return postgres

    @property
    def ways(self) -> Sequence[str]:
        """Of running a task: stock and the kinds, without those that no target speaks of unless there is time."""
        return [STOCK, *(kind for kind in self.kinds if KINDS[kind].warm or self.effort == "full")]

    @property
    def containers(self) -> Sequence[str]:
        """The ways of running a task in a container without Aircell: to see beside it, with no target."""
        return (DOCKER_OPERATOR, CONTAINER) if self.effort == "full" else ()

    @cached_property
    def docker(self) -> Dockerd:
        """With the image of small tasks."""
        root = self.folder()
        dockerd = Dockerd(root, bridge=root.name[:15], address="10.213.81.1/24")
        self.callback(_stop, dockerd)
        dockerd.start()
        dockerd.load(dags.IMAGES[0])
        return dockerd

    def python_path(self) -> dict[str, str]:
        """For Airflow outside sandboxes: this repository, and what DAG files import that the project does not."""
        return {"PYTHONPATH": f"{ROOT}:{libraries()}"}

    def folder(self, parent: str = "/tmp") -> Path:
        """A new one, with a short name, that everybody may read."""
        path = Path(tempfile.mkdtemp(prefix="ab", dir=parent))
        self.callback(shutil.rmtree, path)
        path.chmod(0o755)
        return path

    def settle(self) -> None:
        """Returns once nothing is being made: every pool is full; the next job finds one ready, and the CPU."""
        for node in self._beside:
            node.wait_until(functools.partial(_full, node), "the pools are full", _SETTLE_SECONDS)

    def begun(self, kind: str, image: str) -> bool:
        """Whether a sandbox of that kind is, or was, ready for a job of that image, where they are made beforehand."""
        if kind not in KINDS or not KINDS[kind].warm:
            return True
        pools = self.node(kind).pools()
        wanted = (reference(image), KINDS[kind].mark["kind"])
        return any((pool["ready"] or pool["hits"]) and (pool["image"], pool["kind"]) == wanted for pool in pools)

    @staticmethod
    def served(kind: str, sandbox: Mapping[str, Any]) -> None:
        """Raises AssertionError unless the sandbox, as ``ps`` or ``inspect`` has it, was of that kind."""
        wanted = KINDS[kind].mark
        seen = {name: sandbox.get(name) for name in wanted}
        assert seen == wanted, f"sandbox {sandbox['id']} was to be {kind}, and is {seen}"

    def _configure(self, node: Node, kind: str) -> None:
        node.config |= {**KINDS[kind].config, "log": {"level": "info"}}


def _full(node: Node) -> bool:
    """A shape that nobody has asked for has no pool yet."""
    return all(pool["ready"] >= pool["target"] for pool in node.pools())


def _stop(dockerd: Dockerd) -> None:
    """With the network namespace that it keeps mounted for containers on the host's network."""
    dockerd.stop()
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in points:
        if Path(point).is_relative_to(dockerd.root):
            run("umount", point)


def _leave(node: Node) -> None:
    """Ends an aircelld whose engine is another's. Its sandboxes go first: they would live on."""
    if not node.alive:
        return
    for sandbox in node.ps():
        node.answer("stop", sandbox=sandbox["id"], grace=0)
    node.stop()
