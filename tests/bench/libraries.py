"""What the benchmarks' DAGs import outside sandboxes, beside the project's environment and not in it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from images.build import HERE, cache_dir, locked

REQUIREMENTS = (HERE / "requirements" / "demo-a.txt", Path(__file__).with_name("requirements.txt"))
"""pandas, as the image with pandas has it, and what lets Airflow speak to Docker by itself."""


def libraries() -> Path:
    """A folder for PYTHONPATH, filled when the cache lacks it."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in REQUIREMENTS)).hexdigest()[:16]
    path = cache_dir() / "bench" / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):
        if not path.exists():
            partial = path.with_suffix(".partial")
            named = [word for each in REQUIREMENTS for word in ("--requirement", str(each))]
            uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--python", sys.executable]
            subprocess.run([*uv, "--target", str(partial), *named], check=True)
            partial.rename(path)
    return path
