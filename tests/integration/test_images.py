"""What is in the images that we build, seen from a sandbox."""

from __future__ import annotations

import shlex
import subprocess
from urllib.parse import urlsplit

from tests.support.jobs import text
from tests.support.node import Node


def test_an_image_keeps_nothing_of_the_host_that_built_it(node: Node) -> None:
    node.load("task")
    listed = subprocess.check_output(["apt-get", "indextargets", "--format", "$(REPO_URI)"], text=True)
    hosts = {urlsplit(address).netloc for address in listed.split()}
    words = " ".join(f"-e {shlex.quote(host)}" for host in (*hosts, "UV_CACHE_DIR", "/run/build"))
    leftovers = "ls -A /mnt /var/log /etc/apt/sources.list* 2>/dev/null; ls -d /run/build /run/secrets 2>/dev/null"
    script = f"grep -rlIF {words} /etc /root /var /opt/venv/pyvenv.cfg 2>/dev/null; {leftovers}"
    with node.launch("sh", "-c", script, image="task") as sandbox:
        assert text(sandbox.stdout) == "/mnt:\n\n/var/log:\n"


def test_a_task_image_starts_without_compiling_anything(node: Node) -> None:
    node.load("task")
    script = (
        "import pathlib, airflow.sdk.execution_time.task_runner as runner; "
        "print(pathlib.Path(runner.__cached__).exists(), runner.__cached__)"
    )
    with node.launch("python3", "-c", script, image="task") as sandbox:
        assert text(sandbox.stdout).startswith("True /opt/venv/")
