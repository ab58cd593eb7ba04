"""The pause image: what holds the namespaces of a pod sandbox open while its container comes and goes.

It is built here rather than pulled, so that a node without a registry can make sandboxes. Its one file is a static ELF
executable of under 200 bytes that waits for ever. A pod sandbox of ours has no PID namespace in common with its
container, so there is nothing to reap, and the engine ends it with KILL, so there is nothing to handle.

Sources: the OCI image layout and image configuration specifications, 1.0.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path
from typing import Any

from aircell.daemon.executables import MACHINES, PAUSE, executable

PAUSE_IMAGE = "localhost/aircell/pause:2"


def write_pause_archive(path: Path, machine: str = "") -> None:
    """Writes the image as an OCI archive whose reference is :data:`PAUSE_IMAGE`; by default for this machine."""
    machine = machine or platform.machine()
    layer = _tar({"pause": executable(PAUSE, machine)}, mode=0o755)
    architecture = MACHINES[machine].oci
    config = _json(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Entrypoint": ["/pause"], "Env": ["PATH=/"]},  # without a PATH youki starts nothing
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
        }
    )
    entry = _descriptor("application/vnd.oci.image.manifest.v1+json", manifest) | {
        "platform": {"architecture": architecture, "os": "linux"},
        "annotations": {"io.containerd.image.name": PAUSE_IMAGE},
    }
    files = {f"blobs/sha256/{_digest(blob)[7:]}": blob for blob in (layer, config, manifest)}
    files["oci-layout"] = _json({"imageLayoutVersion": "1.0.0"})
    files["index.json"] = _json({"schemaVersion": 2, "manifests": [entry]})
    path.write_bytes(_tar(files, mode=0o644))


def _tar(files: dict[str, bytes], mode: int) -> bytes:
    """A tar archive that depends on nothing but its arguments: times are zero, owners root."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), mode
            archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _digest(blob: bytes) -> str:
    return "sha256:" + hashlib.sha256(blob).hexdigest()


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}
