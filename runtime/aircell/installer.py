"""Installs requirements into an image: what pip finds missing there, compiled, in a folder of its own.

This file runs on the image's own Python, inside: as the runner of a sandbox (see ``docs/protocol.md``), which sends
what it made as a tar archive on its standard output, or as a step of a Containerfile. Standard library only. pip comes
with the request, so the image needs none.
"""

from __future__ import annotations

import base64
import compileall
import importlib.metadata
import io
import json
import os
import platform
import py_compile
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

FOLDER = "/opt/aircell/requirements"
"""Where they are in the image, and what its PYTHONPATH begins with."""
KEPT = ("apache-airflow-core", "apache-airflow-task-sdk")
"""Distributions of the image that must not be replaced: the task runner is made of them."""


class PipFailed(Exception):
    """pip said why, on standard error."""


def preload() -> None:
    """Nothing: this is used once."""


def describe() -> dict[str, Any]:
    """The version of this Python."""
    return {"python": platform.python_version()}


def run(requests: int, stdout: int, stderr: int, logs: int, args: dict[str, Any]) -> int:
    """Installs what ``args`` (those of :func:`install`) say, and sends it as a tar archive below ``/``."""
    folder = Path(tempfile.mkdtemp())
    try:
        install(folder, **args)
    except PipFailed:
        return 1
    with os.fdopen(stdout, "wb") as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
        archive.add(folder, arcname=FOLDER.lstrip("/"), filter=_anonymous)
    return 0


def install(
    folder: Path, *, requirements: list[str], wheels_only: bool, pip: str, settings: dict[str, str], certificates: str
) -> None:
    """Fills ``folder``, which may be moved to :data:`FOLDER` afterwards. Raises PipFailed.

    ``pip`` is pip's package as a zip archive in base 64, ``settings`` are its variables (PIP_INDEX_URL ...), and
    ``certificates`` those of the authorities that it is to trust, in PEM form.
    """
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        with zipfile.ZipFile(io.BytesIO(base64.b64decode(pip))) as archive:
            archive.extractall(place)  # noqa: S202 - pip, as the node has it
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
        environment |= {"HOME": name, "PIP_CONFIG_FILE": os.devnull, "PIP_USER": "0", **settings}
        if certificates:
            (place / "ca.pem").write_text(certificates)
            environment["PIP_CERT"] = str(place / "ca.pem")
        common = [sys.executable, str(place / "pip"), "install", "--disable-pip-version-check"]
        common += ["--no-input", "--progress-bar=off", "--no-warn-script-location", "--root-user-action=ignore"]
        if wheels_only:
            common.append("--only-binary=:all:")
        report = place / "report.json"
        _write(place / "wanted.txt", [*requirements, *_kept()])
        _pip([*common, "--dry-run", f"--report={report}", f"--requirement={place}/wanted.txt"], environment)
        missing = json.loads(report.read_text())["install"]
        if missing:
            _write(place / "missing.txt", _pinned(missing))
            target = ["--no-deps", "--no-compile", f"--target={folder}", f"--requirement={place}/missing.txt"]
            _pip([*common, *target], environment)
    _compile(folder)


def _kept() -> list[str]:
    """Requirements that keep pip from choosing what the image's Airflow cannot work with."""
    found = []
    for name in KEPT:
        try:
            found.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _pinned(report: list[dict[str, Any]]) -> list[str]:
    """Requirements for exactly what pip chose, see https://pip.pypa.io/en/stable/reference/installation-report/."""
    lines = []
    for item in report:
        name, source = item["metadata"]["name"], item["download_info"]
        if item["is_direct"]:
            lines.append(f"{name} @ {source['url']}")
        else:
            lines.append(f"{name}=={item['metadata']['version']}")
    return lines


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


def _pip(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=2, check=False)  # noqa: S603
    if done.returncode != 0:
        raise PipFailed(f"pip exited with code {done.returncode}")


def _compile(folder: Path) -> None:
    """Files of an image do not change: Python need not look whether they did."""
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(folder, quiet=2, stripdir=str(folder), prependdir=FOLDER, invalidation_mode=mode)


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """As root's, readable for all, without a time: equal installations make equal archives."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
    return entry


def main(*requests: str) -> int:
    """Installs what the files ``requests`` say together (JSON) into :data:`FOLDER` of this very image."""
    folder = Path(tempfile.mkdtemp())
    wanted: dict[str, Any] = {}
    for request in requests:
        wanted |= json.loads(Path(request).read_text())
    try:
        install(folder, **wanted)
    except PipFailed:
        return 1
    folder.chmod(0o755)
    shutil.copytree(folder, FOLDER)
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
