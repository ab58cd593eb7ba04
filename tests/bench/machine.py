"""On what, and with what, something was measured."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

from tests.bench.lab import CONTAINERD, ROOT


def machine() -> dict[str, str]:
    """What is below the software, without a name that tells which machine this is."""
    cpu = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cpus": str(os.cpu_count()),
        "memory": f"{memory / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "cgroups": "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1",
        "distribution": platform.freedesktop_os_release()["PRETTY_NAME"],
    }


def versions() -> dict[str, str]:
    """Of everything that the figures depend on."""
    return {
        "aircell": version("aircell"),
        "airflow": version("apache-airflow"),
        "python": platform.python_version(),
        "containerd": _first_line(CONTAINERD, "--version"),
        "runc": _first_line("runc", "--version"),
    }


def commit() -> str:
    """Of this repository."""
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return _git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def _first_line(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()[0]
