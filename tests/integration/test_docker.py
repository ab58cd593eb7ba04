"""Launches through a real aircelld whose one engine is a real dockerd."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aircell.errors import InvalidSpec, StartupFailed, UnsupportedSpec
from aircell.status import ExitStatus
from tests.support.docker_node import DockerNode
from tests.support.images import reference
from tests.support.jobs import Worker, events, request, text
from tests.support.node import run
from tests.support.package_index import PASSWORD, serving

AIRCELL = str(Path(sys.executable).with_name("aircell"))


@pytest.fixture(scope="module")
def node() -> Iterator[DockerNode]:
    node = DockerNode()
    node.config["policy"] = {"annotations": ["note"]}
    try:
        node.start()
        node.load("base")
        yield node
    finally:
        node.close()


def test_a_command_from_the_shell(node: DockerNode) -> None:
    argv = [AIRCELL, "run", "--socket", node.socket, "--backend", "docker", "--image", reference("base")]
    program = "cat; id -u; echo oops >&2; exit 7"
    done = subprocess.run(
        [*argv, "--", "sh", "-c", program], input="in\n", capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (7, "in\n50000\n")
    assert "oops" in done.stderr


def test_the_events_and_the_end(node: DockerNode) -> None:
    with node.launch("sh", "-c", "exit 3") as sandbox:
        came = events(sandbox)
    assert [event["event"] for event in came] == ["queued", "creating", "starting", "running", "exited"]
    assert came[-1]["exit"] == ExitStatus(code=3).to_wire()


def test_kill(node: DockerNode) -> None:
    with node.launch("sleep", "60") as sandbox:
        node.wait_state(sandbox.id, "running")
        sandbox.signal(signal.SIGKILL)
        assert sandbox.wait(20).signal == signal.SIGKILL


def test_stop(node: DockerNode) -> None:
    with node.launch("sleep", "60") as sandbox:
        node.wait_state(sandbox.id, "running")
        node.answer("stop", sandbox=sandbox.id, grace=5)
        assert sandbox.wait(20).signal == signal.SIGTERM


def test_a_bounded_scratch_and_shm(node: DockerNode) -> None:
    limits = {"scratch": "8Mi", "shm": "4Mi"}
    with node.launch("df", "--block-size=1M", "--output=size", "/tmp", "/dev/shm", resources=limits) as sandbox:
        assert text(sandbox.stdout).split()[1:] == ["8", "4"]
        assert sandbox.wait(20) == ExitStatus(code=0)


def test_a_job_outlives_aircelld_and_is_adopted(node: DockerNode) -> None:
    with node.launch("sh", "-c", "read line; exit 5") as sandbox:
        node.wait_state(sandbox.id, "running")
        node.restart()
        assert [(each["id"], each["state"]) for each in node.ps()] == [(sandbox.id, "running")]
        sandbox.requests.sendall(b"go\n")
        assert sandbox.wait(20) == ExitStatus(code=5)


def test_a_worker_that_dies_takes_its_job_with_it(node: DockerNode) -> None:
    worker = Worker(node.socket, {**request("sleep", "600"), "backend": "docker"})
    node.wait_state(worker.sandbox, "running")
    worker.kill()
    node.clean()


def test_an_image_without_the_interpreter(node: DockerNode) -> None:
    assert "not in the image" in node.failure(StartupFailed, python="no-such-python").message


def test_what_docker_cannot_enforce_is_refused(node: DockerNode) -> None:
    assert "API 1.43" in node.failure(UnsupportedSpec, annotations={"note": "x"}).message


def test_another_backend_is_not_there(node: DockerNode) -> None:
    with pytest.raises(InvalidSpec, match="no backend 'cri'; it has: docker"):
        node.client.launch(request("true"))


def test_nothing_is_left(node: DockerNode) -> None:
    node.clean()


def test_requirements(node: DockerNode) -> None:
    look = "import greeting, os; print(greeting.__file__, os.environ['PYTHONPATH'], os.environ['PATH'])"
    with serving({"greeting": ""}) as index:
        node.pip_conf.write_text(index.pip_conf(node.gateway))
        with node.launch("python3", "-c", look, requirements=("greeting",)) as sandbox:
            came = events(sandbox, 90)
            file, python_path, path = text(sandbox.stdout).split()
    assert (file, python_path) == ("/opt/aircell/requirements/greeting.py", "/opt/aircell/requirements")
    assert path.startswith("/opt/aircell/requirements/bin:/")
    image = next(event["image"] for event in came if event["event"] == "building")
    assert PASSWORD not in run("docker", "--host", node.dockerd.host, "history", "--no-trunc", image)


def test_an_image_built_by_docker(node: DockerNode, tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("greeting\n")
    argv = [AIRCELL, "image", "build", "--socket", node.socket, "--backend", "docker", "--builder", "docker"]
    argv += ["--tag", "team/greets:1", "--requirements", str(file), "--base", node.load("base"), "--airflow", "none"]
    with serving({"greeting": ""}) as index:
        (tmp_path / "pip.conf").write_text(index.pip_conf("127.0.0.1"))
        env = {**os.environ, "DOCKER_HOST": node.dockerd.host, "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
        env["PATH"] = f"/usr/bin:{env['PATH']}"  # the distribution's docker.io, which needs no buildx
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sha256:")
    look = "import greeting; print(greeting.__cached__)"
    with node.launch("python3", "-c", look, image="team/greets:1", pull_policy="never") as sandbox:
        assert text(sandbox.stdout).startswith("/opt/aircell/requirements/__pycache__/greeting.")
    assert PASSWORD not in run("docker", "--host", node.dockerd.host, "history", "--no-trunc", "team/greets:1")
