"""An image from an archive, with files put on top, as ``tests.support.registry`` serves it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


class ArchiveImage:
    """Its blobs by digest, and the digest of what a tag names: here a manifest without an index around it."""

    def __init__(self, archive: Path, files: Mapping[str, str] | None = None) -> None:
        self.blobs: dict[str, bytes] = {}
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and (file := tar.extractfile(member)):
                    self.blobs["sha256:" + Path(member.name).name] = file.read()
        index = json.loads(self.blobs.pop("sha256:index.json"))
        self.index: str = index["manifests"][0]["digest"]
        if files:
            self._add_layer(_tar(files))

    def _add_layer(self, layer: bytes) -> None:
        manifest: dict[str, Any] = json.loads(self.blobs[self.index])
        config = json.loads(self.blobs[manifest["config"]["digest"]])
        config["rootfs"]["diff_ids"].append("sha256:" + hashlib.sha256(layer).hexdigest())
        config.pop("history", None)
        manifest["config"] |= self._add(json.dumps(config).encode())
        manifest["layers"].append({"mediaType": LAYER, **self._add(gzip.compress(layer, mtime=0))})
        self.index = self._add(json.dumps(manifest).encode())["digest"]

    def _add(self, blob: bytes) -> dict[str, Any]:
        digest = "sha256:" + hashlib.sha256(blob).hexdigest()
        self.blobs[digest] = blob
        return {"digest": digest, "size": len(blob)}


def _tar(files: Mapping[str, str]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text.encode()), 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
    return target.getvalue()
