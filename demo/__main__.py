"""``./justw demo``: two DAG files that cannot share an environment, each parsed and run in sandboxes of its own.

Everything lives in temporary folders: an aircelld with an engine of its own, and an Airflow with api-server,
scheduler, DAG processor and triggerer. The same helpers start them for the tests.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer
from rich.console import Console
from rich.markup import escape

from demo.report import evidence, inspection, table
from images.build import ImageBuildError, archive
from tests.support.airflow_stack import AirflowStack
from tests.support.docker_node import DockerNode
from tests.support.node import Node

DAGS = Path(__file__).resolve().parent.parent / "examples" / "dags"
DAG_IDS = ("sales_pandas_2", "sales_pandas_3")
IMAGES = ("demo-a", "demo-b")
RUN_ID = "demo"

Backend: TypeAlias = Literal["cri", "docker"]

console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def main(
    keep: Annotated[bool, typer.Option(help="Leave all of it up until Ctrl-C, with Airflow's UI.")] = False,
    backend: Annotated[Backend, typer.Option(help="What runs the sandboxes.")] = "cri",
) -> None:
    """Runs two DAG files with conflicting dependencies, each in sandboxes of its own image."""
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    pandas = importlib.util.find_spec("pandas")
    console.print(f"pandas on this host: {pandas.origin if pandas else 'not installed'}")
    with node(backend) as sandboxes:
        with airflow(sandboxes, backend) as stack:
            ok = run_dags(stack)
            console.print(table(stack, DAG_IDS, RUN_ID))
            console.print(evidence(stack, DAG_IDS, RUN_ID), inspection(sandboxes), sep="\n", soft_wrap=True)
            if keep:
                wait_for_interrupt(stack)
        with step("Nothing left of any sandbox: process, mount, snapshot, cgroup, folder, network interface"):
            sandboxes.clean()
    console.print(f"Done in {time.monotonic() - started:.0f} s.")
    if not ok:
        raise typer.Exit(1)


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """A line when it begins, and the seconds that it took when it ends well."""
    console.print(f"[bold]>[/bold] {title} ...")
    started = time.monotonic()
    yield
    console.print(f"  [green]done[/green] in {time.monotonic() - started:.1f} s")


@contextlib.contextmanager
def node(backend: Backend) -> Iterator[Node]:
    """An aircelld, with an engine of its own that has the images."""
    with step("Images with pandas 2 and pandas 3, from this host's package sources"):
        try:
            for name in IMAGES:
                archive(name)
        except ImageBuildError as error:
            console.print(f"[red]{escape(str(error))}[/red]")
            raise typer.Exit(1) from error
    engine, running = ("Docker", DockerNode()) if backend == "docker" else ("containerd", Node())
    try:
        with step(f"aircelld, which the first request starts, and its {engine}"):
            running.start(on_first_use=True)
        with step(f"Images into {engine}"):
            for name in IMAGES:
                running.load(name)
        yield running
    finally:
        with step(f"aircelld and {engine} stop"):
            running.close()


@contextlib.contextmanager
def airflow(sandboxes: Node, backend: Backend) -> Iterator[AirflowStack]:
    """An Airflow that runs everything in sandboxes of that node."""
    home = Path(tempfile.mkdtemp(prefix="aircell-demo-"))
    home.chmod(0o755)  # a sandbox's user reads the DAG files below it
    shutil.copytree(DAGS, home / "dags")
    bundle = {
        "name": "examples",
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(home / "dags")},
    }
    runtime = {
        "task_execution_runtime": backend,
        "dag_parsing_runtime": backend,
        "socket_path": sandboxes.socket,
    }
    stack = AirflowStack(home=home, bundles=[bundle], config={"sandbox_runtime": runtime})
    try:
        with step("Airflow: database, api-server, DAG processor, triggerer"):
            stack.start()
        with stack.scheduler():
            yield stack
    finally:
        with step("Airflow stops"):
            stack.stop()
            shutil.rmtree(home)


def run_dags(stack: AirflowStack) -> bool:
    """Runs each DAG once; whether all succeeded."""
    with step("Both DAG files parsed, each in its own image, and a run of each triggered"):
        for dag_id in DAG_IDS:
            stack.trigger(dag_id, RUN_ID)
    with step("Both runs finished"):
        states = [stack.wait_for_run(dag_id, RUN_ID) for dag_id in DAG_IDS]
    return all(state == "success" for state in states)


def wait_for_interrupt(stack: AirflowStack) -> None:
    console.print(f"\nAirflow's UI: http://127.0.0.1:{stack.port}  Run the DAGs again there. Ctrl-C shuts all down.")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


if __name__ == "__main__":
    typer.run(main)
