"""``aircell image build``: real builders, and images that run in the engine that they were loaded into."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from images.build import archive
from tests.support.jobs import text
from tests.support.node import Node
from tests.support.package_index import PASSWORD, serving

AIRCELL = str(Path(sys.executable).with_name("aircell"))
Build = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def build(node: Node, tmp_path: Path) -> Build:
    """Runs the command with buildah, whose store is a temporary folder."""
    storage = tmp_path / "storage.conf"
    storage.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{tmp_path}/store"\nrunroot = "{tmp_path}/store-run"\n'
    )
    # Where the tests run there may be no way to make namespaces of a container, which is what chroot is for.
    own = {"CONTAINERS_STORAGE_CONF": str(storage), "BUILDAH_ISOLATION": "chroot"}

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        argv = [AIRCELL, "image", "build", "--socket", node.socket, "--builder", "buildah", *arguments]
        env = {**ours, **own, **environment}
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=110, check=False)

    return run


def test_from_a_containerfile(node: Node, build: Build, tmp_path: Path) -> None:
    (tmp_path / "Containerfile").write_text("ARG BASE\nFROM ${BASE}\nCOPY said /said\nUSER 7\n")
    (tmp_path / "said").write_text("from the context\n")
    done = build(str(tmp_path), "--tag", "team/said:1", "--build-arg", f"BASE=oci-archive:{archive('base')}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sha256:")
    assert "COPY said /said" in done.stderr
    with node.launch("cat", "/said", image="team/said:1", pull_policy="never") as sandbox:
        assert text(sandbox.stdout) == "from the context\n"


def test_from_requirements(node: Node, build: Build, tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("greeting==1.0  # says hello\n")
    with serving({"greeting": "SAYS = 'hello'\n"}) as index:
        (tmp_path / "pip.conf").write_text(index.pip_conf("127.0.0.1"))
        base = ["--base", f"oci-archive:{archive('base')}", "--airflow", "none", "--tag", "localhost/team/greets:1"]
        done = build("--requirements", str(file), *base, PIP_CONFIG_FILE=str(tmp_path / "pip.conf"))
    assert done.returncode == 0, done.stderr
    look = "import greeting, os; print(greeting.__cached__, os.path.exists(greeting.__cached__), os.environ['PATH'])"
    with node.launch("python3", "-c", look, image="localhost/team/greets:1", pull_policy="never") as sandbox:
        cached, exists, path = text(sandbox.stdout).split()
    assert (cached, exists) == ("/opt/aircell/requirements/__pycache__/greeting.cpython-311.pyc", "True")
    assert path.startswith("/opt/aircell/requirements/bin:/")
    assert PASSWORD not in done.stderr
    search = f"grep -r {PASSWORD} /opt /etc /home /root /run 2>/dev/null; env"
    with node.launch("sh", "-c", search, image="localhost/team/greets:1") as sandbox:
        assert PASSWORD not in text(sandbox.stdout)


def test_what_is_wrong_is_said_with_its_remedy(build: Build, tmp_path: Path) -> None:
    (tmp_path / "Containerfile").write_text("FROM scratch\nFLY away\n")
    malformed = build(str(tmp_path), "--tag", "x")
    assert malformed.returncode == 125
    assert "aircell: the image docker.io/library/x:latest could not be built: its Containerfile" in malformed.stderr
    nothing = build(str(tmp_path), "--tag", "x", "--file", str(tmp_path / "other"))
    assert f"there is no {tmp_path}/other" in nothing.stderr
    no_builder = build(str(tmp_path), "--tag", "x", PATH=str(tmp_path))
    assert (no_builder.returncode, "fix: Install buildah" in no_builder.stderr) == (125, True)
    option = tmp_path / "requirements.txt"
    option.write_text("--index-url=http://evil\n")
    refused = build("--tag", "x", "--requirements", str(option))
    assert f"{option}:1: " in refused.stderr
