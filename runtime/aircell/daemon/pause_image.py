"""The pause image: what holds the namespaces of a pod sandbox open while its container comes and goes.

It is built here rather than pulled, so that a node without a registry can make sandboxes. Its one file is a static ELF
executable of under 200 bytes that waits for ever. A pod sandbox of ours has no PID namespace in common with its
container, so there is nothing to reap, and the engine ends it with KILL, so there is nothing to handle.

Sources: elf(5); the system call tables of Linux; the OCI image layout and image configuration specifications, 1.0.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import struct
import tarfile
from pathlib import Path
from typing import Any

from aircell.errors import EngineUnavailable

PAUSE_IMAGE = "localhost/aircell/pause:2"

_BASE = 0x400000
_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")

_X86_64 = bytes.fromhex(
    "b822000000"  # mov eax, 34 (pause)
    "0f05"  # syscall
    "ebf7"  # jmp to the start
)
_AARCH64 = struct.pack(
    "<8I",
    0xD2800000,  # mov x0, 0
    0xD2800001,  # mov x1, 0
    0xD2800002,  # mov x2, 0
    0xD2800003,  # mov x3, 0
    0xD2800004,  # mov x4, 0
    0xD2800928,  # mov x8, 73 (ppoll: there is no pause on this architecture)
    0xD4000001,  # svc 0
    0x17FFFFF9,  # b to the start
)
_MACHINES = {"x86_64": (62, "amd64", _X86_64), "aarch64": (183, "arm64", _AARCH64)}


def pause_executable(machine: str) -> bytes:
    """The ELF file for ``machine`` as ``platform.machine()`` names it. Raises EngineUnavailable for any other."""
    if machine not in _MACHINES:
        raise EngineUnavailable(
            f"there is no built-in pause image for {machine}.",
            hint=f"Aircell's own containerd runs on {' and '.join(_MACHINES)}; use another CRI socket here.",
        )
    elf_machine, _, code = _MACHINES[machine]
    offset = _ELF_HEADER.size + _PROGRAM_HEADER.size
    size = offset + len(code)
    identification = b"\x7fELF" + bytes([2, 1, 1])  # 64-bit, little-endian, version 1; struct pads the rest with zeros
    header = _ELF_HEADER.pack(
        identification, 2, elf_machine, 1, _BASE + offset, _ELF_HEADER.size, 0, 0,
        _ELF_HEADER.size, _PROGRAM_HEADER.size, 1, 0, 0, 0,
    )  # fmt: skip
    segment = _PROGRAM_HEADER.pack(1, 5, 0, _BASE, _BASE, size, size, 0x1000)  # PT_LOAD, readable and executable
    return header + segment + code


def write_pause_archive(path: Path, machine: str = "") -> None:
    """Writes the image as an OCI archive whose reference is :data:`PAUSE_IMAGE`; by default for this machine."""
    machine = machine or platform.machine()
    executable = pause_executable(machine)
    architecture = _MACHINES[machine][1]
    layer = _tar({"pause": executable}, mode=0o755)
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
