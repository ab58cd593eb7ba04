"""``justw`` and ``scripts/setup``: what they say where a machine does not fit, and that the second run is quick."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")


def run(*argv: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **({"PATH": path} if path else {})}
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder for PATH with the least that a shell script needs, and nothing of Python, apt or containerd."""
    for name in ("sh", "dirname", "cmp", "tr", "id", "uname", "cat", "rm"):
        (tmp_path / name).symlink_to(shutil.which(name) or pytest.fail(f"no {name}"))
    return tmp_path


@pytest.fixture
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which nothing has been installed yet."""
    folder = tmp_path_factory.mktemp("clone")
    folder.chmod(0o755)
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    shutil.copy(ROOT / "justw", folder)
    return folder


def test_what_is_in_place_is_found_at_once() -> None:
    assert run(str(ROOT / "scripts" / "setup"), "tests").returncode == 0
    started = time.monotonic()
    done = run(str(ROOT / "scripts" / "setup"), "tests")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - started < 5


def test_setup_says_that_it_takes_root() -> None:
    script = (ROOT / "scripts" / "setup").read_text()  # nobody may not be able to enter the checkout
    done = run(*NOBODY, "sh", "-c", script, "scripts/setup", "engines")
    assert done.returncode == 1
    assert "not root" in done.stderr
    assert "sudo" in done.stderr


def test_setup_says_that_it_takes_linux(machine: Path) -> None:
    (machine / "uname").unlink()
    (machine / "uname").write_text("#!/bin/sh\necho Darwin\n")
    (machine / "uname").chmod(0o755)
    done = run(str(ROOT / "scripts" / "setup"), "engines", path=str(machine))
    assert (done.returncode, done.stderr) == (1, "setup: Aircell runs on Linux; this is Darwin.\n")


def test_setup_names_the_packages_where_there_is_no_apt(machine: Path) -> None:
    done = run(str(ROOT / "scripts" / "setup"), "engines", path=str(machine))
    assert done.returncode == 1
    assert "buildah" in done.stderr
    assert "Debian" in done.stderr


def test_justw_says_which_python_it_needs(checkout: Path, machine: Path) -> None:
    done = run(str(checkout / "justw"), path=str(machine))
    assert done.returncode == 1
    assert "needs Python 3.10 or newer" in done.stderr
    assert not (checkout / ".tools").exists()
