"""One more layer on an image, as something that Docker builds: nothing of it runs."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO


def write_context(target: IO[bytes], base: str, layer: Path, paths: Mapping[str, str]) -> None:
    """A build context for ``base`` with the tar archive ``layer`` unpacked on it, and ``paths`` in front of the
    variables of that name."""
    dockerfile = dockerfile_for(base, paths).encode()
    with tarfile.open(fileobj=target, mode="w") as context:
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(dockerfile)
        context.addfile(entry, io.BytesIO(dockerfile))
        context.add(layer, arcname="layer.tar")


def dockerfile_for(base: str, paths: Mapping[str, str]) -> str:
    """ADD unpacks a local archive, see https://docs.docker.com/reference/dockerfile/#add."""
    variables = [f"ENV {name}={path}${{{name}:+:${name}}}\n" for name, path in paths.items()]
    return f"FROM {base}\nADD layer.tar /\n{''.join(variables)}"
