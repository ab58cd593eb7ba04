"""The builder's cache, with stand-ins for the tools that it calls: what it does around them is what is tested here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MMDEBSTRAP = '#!/bin/sh\necho called >>"$AIRCELL_CACHE/calls"; sleep 0.5; for each; do :; done\n'
BUILDAH = """#!/bin/sh
case "$*" in *" push "*) for target; do :; done; file=${target#oci-archive:}; echo image >"${file%%:*}" ;; esac
"""
Build = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Starts ``python -m images.build base`` with an empty cache, ``tmp_path``, and stand-ins on PATH."""
    tool(tmp_path, "mmdebstrap", MMDEBSTRAP)
    tool(tmp_path, "buildah", BUILDAH)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "AIRCELL_CACHE": str(tmp_path)}

    def start() -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "images.build", "base"]
        return subprocess.Popen(argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def tool(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)


def test_callers_at_the_same_time_build_once(build: Build, tmp_path: Path) -> None:
    printed = {process.communicate(timeout=30)[0] for process in [build(), build(), build()]}
    assert len(printed) == 1
    reference, path = printed.pop().split()
    assert reference == "localhost/aircell/base:test"
    assert Path(path).read_text() == "image\n"
    assert (tmp_path / "calls").read_text() == "called\n"


def test_a_failed_build_leaves_no_image_and_says_where_its_log_is(build: Build, tmp_path: Path) -> None:
    tool(tmp_path, "buildah", "#!/bin/sh\necho no space left; exit 7\n")
    process = build()
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 1
    assert "there is no space left for it" in errors
    assert str(tmp_path / "images") in errors
    assert list((tmp_path / "images").glob("*.tar")) == []
