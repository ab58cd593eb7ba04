"""Hundreds of small images, for an engine to know."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from aircell.daemon.pause_image import write_pause_archive
from tests.support.archive_image import ArchiveImage

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def write(path: Path, names: Sequence[str]) -> None:
    """An OCI archive with an image of that name for each: alike but for one file."""
    write_pause_archive(path)
    images = {name: ArchiveImage(path, {"name": name}) for name in names}
    blobs = {digest: blob for image in images.values() for digest, blob in image.blobs.items() if ":" in digest}
    entries = [
        {
            "mediaType": _MANIFEST,
            "digest": image.index,
            "size": len(blobs[image.index]),
            "annotations": {"io.containerd.image.name": name},
        }
        for name, image in images.items()
    ]
    files = {f"blobs/sha256/{digest.removeprefix('sha256:')}": blob for digest, blob in blobs.items()}
    files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    _write_tar(path, files)


def _write_tar(path: Path, files: Mapping[str, bytes]) -> None:
    with tarfile.open(path, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
