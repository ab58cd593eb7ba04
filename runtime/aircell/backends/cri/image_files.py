"""Images that come from files. The CRI can only pull, so containerd's own client ``ctr`` does this.

Sources: the OCI image specification, 1.0; the layout that ``ctr images import`` reads.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from aircell.backends.cri.config import CriConfig
from aircell.deadlines import within
from aircell.errors import EngineError, EngineUnavailable

_NAMESPACE = "k8s.io"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CHUNK = 2**20
Json = dict[str, Any]


class ImageFiles:
    """Of one containerd."""

    def __init__(self, config: CriConfig) -> None:
        self._config = config

    async def load(self, archive: IO[bytes]) -> None:
        """Raises EngineError, and EngineUnavailable where there is no ``ctr``."""
        # The CRI part unpacks an image when it is first used, into the snapshotter that it is configured with.
        await self._ctr("images", "import", "--no-unpack", "-", stdin=archive)

    async def add_layer(self, base: str, layer: Path, reference: str, paths: Mapping[str, str]) -> None:
        """Of the image whose id is ``base`` only the description is read; its layers stay where they are."""
        manifest, config = await self._description(base)
        with tempfile.TemporaryFile(dir=layer.parent) as archive:
            await asyncio.to_thread(_write_archive, archive, manifest, config, layer, reference, paths)
            archive.seek(0)
            await self.load(archive)

    async def _description(self, image: str) -> tuple[Json, Json]:
        """Manifest and configuration of the variant that this node uses, which the CRI calls by its id."""
        listed = (await self._ctr("images", "list", f"name=={image}")).decode().splitlines()
        if len(listed) != 2:
            raise EngineError(f"containerd does not show the image {image}.", hint="Does something prune images?")
        target = json.loads(await self._blob(listed[1].split()[2]))
        for manifest in [target] if "config" in target else [await self._variant(each) for each in target["manifests"]]:
            if manifest.get("config", {}).get("digest") == image:
                return manifest, json.loads(await self._blob(image))
        raise EngineError(f"containerd has no manifest of the image {image}.", hint="Pull it again.")

    async def _variant(self, described: Json) -> Json:
        """A manifest out of an index; empty for one that was not pulled, as it is for other machines."""
        try:
            variant: Json = json.loads(await self._blob(described["digest"]))
        except EngineError:
            return {}
        return variant

    async def _blob(self, digest: str) -> bytes:
        return await self._ctr("content", "get", digest)

    async def _ctr(self, *arguments: str, stdin: IO[bytes] | int = asyncio.subprocess.DEVNULL) -> bytes:
        argv = [self._config.ctr, "--address", self._config.socket, "--namespace", _NAMESPACE, *arguments]
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(*argv, stdin=stdin, stdout=pipe, stderr=pipe)
        except FileNotFoundError as error:
            raise EngineUnavailable(
                f"{self._config.ctr}, containerd's client, is not on this node, and the CRI cannot take up images.",
                hint="Install it, or name it in `backends.cri.ctr` of aircelld's configuration.",
            ) from error
        try:
            output, errors = await within(self._config.pull_timeout, process.communicate())
        except asyncio.TimeoutError as error:
            raise EngineUnavailable(f"`{' '.join(argv)}` took over {self._config.pull_timeout:g} s.") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            said = errors.decode(errors="replace").strip()
            raise EngineError(f"`{' '.join(argv)}` failed: {said}", hint="Look at the engine's log.")
        return output


def with_layer(config: Json, digest: str, paths: Mapping[str, str]) -> Json:
    """An image's configuration with one more layer, and ``paths`` in front of its variables."""
    config = copy.deepcopy(config)
    config["rootfs"]["diff_ids"].append(digest)
    config.setdefault("history", []).append({"created_by": "aircell: requirements"})
    inner = config.setdefault("config", {})
    environment = dict(entry.split("=", 1) for entry in inner.get("Env") or ())
    for name, path in paths.items():
        environment[name] = f"{path}:{environment[name]}" if environment.get(name) else path
    inner["Env"] = [f"{name}={value}" for name, value in environment.items()]
    return config


def _write_archive(
    target: IO[bytes], manifest: Json, config: Json, layer: Path, reference: str, paths: Mapping[str, str]
) -> None:
    """An OCI archive of what is new: containerd has the layers below."""
    digest = _file_digest(layer)
    described = json.dumps(with_layer(config, digest, paths)).encode()
    media_type = manifest.get("mediaType", _MANIFEST)
    added = {
        "mediaType": _DOCKER_LAYER if "docker" in media_type else _LAYER,
        "digest": digest,
        "size": layer.stat().st_size,
    }
    whole = json.dumps(
        {
            **manifest,
            "config": {**manifest["config"], "digest": _digest(described), "size": len(described)},
            "layers": [*manifest["layers"], added],
        }
    ).encode()
    entry = {
        "mediaType": media_type,
        "digest": _digest(whole),
        "size": len(whole),
        "annotations": {"io.containerd.image.name": reference},
    }
    with tarfile.open(fileobj=target, mode="w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(archive, "index.json", json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
        for blob in (described, whole):
            _add(archive, _path(_digest(blob)), blob)
        archive.add(layer, arcname=_path(digest))


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _file_digest(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total.update(chunk)
    return f"sha256:{total.hexdigest()}"
