"""The images of ``images/build.py`` in the form that any Docker loads: ``python -m images.docker_archive [NAME ...]``.

Docker before 25 reads neither OCI archives nor layers compressed with zstd. The form is the one that newer versions of
``docker save`` write: an OCI layout, with the older ``manifest.json`` beside it.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from images.build import IMAGES, archive, cache_dir, locked


def docker_archive(name: str) -> Path:
    """Path of the archive of the image called ``name``, made now if the cache lacks it.

    Raises what :func:`images.build.archive` does, and CalledProcessError when buildah fails.
    """
    source = archive(name)
    target = source.with_suffix(".docker.tar")
    with locked(target.with_suffix(".lock")):
        if not target.exists():
            _convert(source, IMAGES[name].reference, target)
    return target


def _convert(source: Path, reference: str, target: Path) -> None:
    cache = cache_dir()
    buildah = ["buildah", "--root", str(cache / "buildah"), "--runroot", str(cache / "buildah-run")]
    pulled = subprocess.run(
        [*buildah, "pull", "--quiet", f"oci-archive:{source}"], check=True, stdout=subprocess.PIPE, text=True
    )
    with tempfile.TemporaryDirectory(prefix="aircell-docker-", dir=source.parent) as folder:
        layout, partial = Path(folder) / "layout", Path(folder) / "archive"
        push = [*buildah, "push", "--quiet", "--format", "oci", "--compression-format", "gzip"]
        subprocess.run([*push, pulled.stdout.strip(), f"oci:{layout}:{reference}"], check=True)
        with tarfile.open(partial, "w") as tar:
            manifest = json.dumps([_manifest(layout, reference)]).encode()
            entry = tarfile.TarInfo("manifest.json")
            entry.size = len(manifest)
            tar.addfile(entry, io.BytesIO(manifest))
            tar.add(layout, arcname=".")
        partial.rename(target)


def _manifest(layout: Path, reference: str) -> dict[str, object]:
    """What ``docker load`` looks for: which blobs are the configuration and the layers."""

    def blob(descriptor: dict[str, str]) -> str:
        return "blobs/" + descriptor["digest"].replace(":", "/")

    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads((layout / blob(index["manifests"][0])).read_text())
    return {
        "Config": blob(manifest["config"]),
        "RepoTags": [reference],
        "Layers": [blob(layer) for layer in manifest["layers"]],
    }


def main(names: Sequence[str]) -> None:
    """Makes the archives of the named images, or of all, and prints the path of each."""
    for name in names or list(IMAGES):
        print(f"{IMAGES[name].reference}\t{docker_archive(name)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
