"""``preload: auto`` on a real node: what a DAG file was slow to import, the next sandboxes have imported already."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aircell.status import ExitStatus
from images.build import cache_dir
from tests.support.archive_image import ArchiveImage
from tests.support.images import archive
from tests.support.jobs import events, request, text
from tests.support.node import Node
from tests.support.registry import serving

PACKAGES = "usr/lib/python3/dist-packages"
SLOW = """
import time
end = time.thread_time() + 0.1
while time.thread_time() < end: pass
"""
BEFORE_THE_JOB = "import os, sys\nif type(sys.meta_path[0]).__name__ != 'Finder': "
MODULES = {
    "slow": SLOW,
    "broken": SLOW + BEFORE_THE_JOB + "raise ValueError('not before the job')\n",
    "threaded": SLOW + "import threading\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n",
    "deadly": SLOW + BEFORE_THE_JOB + "os._exit(3)\n",
}
RUNNER = """
import importlib.machinery, os, sys
def describe(): return {}
def preload(): pass
def run(requests, stdout, stderr, logs, args):
    before = [name for name in args["modules"] if name in sys.modules]
    importlib.machinery.SourceFileLoader("dag", "/dags/dag.py").load_module()
    os.write(stdout, " ".join(before).encode())
"""
"""Loads a DAG file, and says which modules were there before."""


@pytest.fixture(scope="module", params=["warm", "zygote"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def node(kind: str) -> Iterator[Node]:
    node = Node()
    if kind == "zygote":
        node.config["containerd"]["binary"] = str(cache_dir() / "bin" / "containerd")
    try:
        node.start()
        yield node
    finally:
        node.close()


@pytest.fixture(scope="module")
def image(node: Node) -> Iterator[str]:
    files = {f"{PACKAGES}/{name}.py": source for name, source in MODULES.items()}
    with serving(ArchiveImage(archive("base"), files)) as registry:
        registry.any_name = True
        node.allow_plain_http(registry.host)
        yield registry.reference("auto")


@pytest.fixture(autouse=True)
def nothing_is_left(node: Node) -> Iterator[None]:
    yield
    node.clean()  # one that is being made again, with the least CPU weight, is removed when it is ready


@pytest.fixture
def dags(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    return tmp_path


def run(node: Node, image: str, dags: Path, role: str = "task", preload: str | list[str] = "auto") -> tuple[str, Any]:
    """What had been imported beforehand, and the event that says how the job was served."""
    wanted = request("true", image=image, mounts=[{"source": str(dags), "target": "/dags"}], preload=preload)
    job = {"kind": "runner", "runner": RUNNER, "args": {"modules": list(MODULES)}}
    with node.client.launch({**wanted, "job": job, "role": role}) as sandbox:
        printed = text(sandbox.stdout)
        came = events(sandbox)
        assert sandbox.wait(30) == ExitStatus(code=0), text(sandbox.stderr)
    return printed, next(event for event in came if event["event"] == "running")


def pool(node: Node) -> dict[str, Any]:
    [found] = node.pools()
    return dict(found)


def wait_taught(node: Node, learned: list[str], left_out: list[str]) -> None:
    """Returns once what is ready has preloaded what could be learned."""

    def taught() -> bool:
        now = pool(node)
        wanted = now["learned"] == learned and [*now["left_out"]] == left_out
        return wanted and now["ready"] > 0 and not now["stale"]

    node.wait_until(taught, f"what is ready has {learned}", 60)


def test_the_next_job_finds_imported_what_a_dag_file_was_slow_to_import(
    node: Node, kind: str, image: str, dags: Path
) -> None:
    (dags / "dag.py").write_text("import slow")
    assert run(node, image, dags)[0] == ""
    wait_taught(node, ["slow"], [])
    printed, event = run(node, image, dags)
    assert (printed, event["kind"], event["ready"], event["preload_errors"]) == ("slow", kind, True, {})


def test_what_was_ready_before_is_replaced(node: Node, kind: str, image: str, dags: Path) -> None:
    (dags / "dag.py").write_text("")
    run(node, image, dags)
    wait_taught(node, [], [])
    (dags / "dag.py").write_text("import slow")
    printed, event = run(node, image, dags)
    assert (printed, event["ready"]) == ("", True)
    wait_taught(node, ["slow"], [])
    printed, event = run(node, image, dags)
    assert (printed, event["kind"], event["ready"]) == ("slow", kind, True)


@pytest.mark.parametrize(
    ("module", "why"),
    [
        ("broken", "ValueError: not before the job"),
        ("threaded", "it starts threads"),
        ("deadly", "a sandbox that was to import it failed: the sandbox ended with code 3"),
    ],
)
def test_what_cannot_be_preloaded_is_left_out_and_told_of(
    node: Node, kind: str, image: str, dags: Path, module: str, why: str
) -> None:
    (dags / "dag.py").write_text("import slow")
    run(node, image, dags)
    wait_taught(node, ["slow"], [])
    (dags / "dag.py").write_text(f"import slow, {module}")
    run(node, image, dags)
    wait_taught(node, ["slow"], [module])
    printed, event = run(node, image, dags)
    assert (printed, event["kind"], event["ready"]) == ("slow", kind, True)
    assert [*event["preload_errors"]] == [module]
    assert why in event["preload_errors"][module]


def test_tasks_learn_from_the_parse_of_their_file(node: Node, image: str, dags: Path) -> None:
    (dags / "dag.py").write_text("import slow")
    run(node, image, dags, role="parse", preload=["auto", "json"])
    assert run(node, image, dags)[0] == ""
    node.wait_until(
        lambda: [(each["learned"], each["ready"], each["stale"]) for each in node.pools()] == [(["slow"], 1, 0)] * 2,
        "both are ready",
        60,
    )
    assert run(node, image, dags)[0] == "slow"


def test_nothing_of_the_bundle_is_learned_and_nobody_learns_who_has_not_asked(
    node: Node, image: str, dags: Path
) -> None:
    (dags / "ours.py").write_text(SLOW)
    (dags / "dag.py").write_text("import sys; sys.path.append('/dags'); import ours")
    run(node, image, dags)
    wait_taught(node, [], [])
    (dags / "dag.py").write_text("import slow")
    run(node, image, dags, preload=[])
    run(node, image, dags, preload=[])
    assert [each["learned"] for each in node.pools()] == [[], []]
