"""A registry on the loopback interface that serves one image, and fails in the ways that registries fail.

Sources: the OCI image and distribution specifications, 1.0.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import randbytes
from typing import Any, Protocol

from aircell.daemon.executables import PAUSE, executable

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass
class Image:
    """An image like no other: its one layer holds ``/pause`` and random bytes."""

    size: int = 1000
    architecture: str = "amd64"
    blobs: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layer = self._describe(LAYER, _tar({"pause": executable(PAUSE), "random": randbytes(self.size)}))
        system = {"architecture": self.architecture, "os": "linux"}
        config = self._describe(CONFIG, {**system, "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}})
        manifest = self._describe(
            MANIFEST, {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}
        )
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [{**manifest, "platform": system}]}
        self.index: str = self._describe(INDEX, index)["digest"]

    def _describe(self, media_type: str, content: bytes | dict[str, Any]) -> dict[str, Any]:
        blob = content if isinstance(content, bytes) else json.dumps(content).encode()
        return {"mediaType": media_type, "digest": self._add(blob), "size": len(blob)}

    def _add(self, blob: bytes) -> str:
        digest = "sha256:" + hashlib.sha256(blob).hexdigest()
        self.blobs[digest] = blob
        return digest

    def break_manifest(self) -> None:
        """From now on the tag names what is no manifest."""
        self.index = self._add(json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "layers": "no list"}).encode())


def _tar(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755
            archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


class Served(Protocol):
    """What a registry needs of an image."""

    blobs: dict[str, bytes]
    index: str
    """The digest that a tag names."""


@dataclass
class Registry:
    """Serves one image as ``image:latest``, or under any name."""

    image: Served
    host: str = ""
    any_name: bool = False
    open: threading.Event = field(default_factory=threading.Event)
    """While it is clear nobody gets a manifest."""
    asked: list[str] = field(default_factory=list)
    """The paths of manifests that were asked for, in order."""
    credentials: tuple[str, str] | None = None
    status: int = 200
    """Answers every request so, unless it is 200."""
    seconds_per_blob: float = 0.0

    def reference(self, name: str = "image") -> str:
        return f"{self.host}/{name}:latest"

    def refusal(self, authorization: str | None) -> int:
        """The status of an answer without content, or 0."""
        if self.status != 200:
            return self.status
        if self.credentials is None:
            return 0
        wanted = "Basic " + base64.b64encode(":".join(self.credentials).encode()).decode()
        return 0 if authorization == wanted else 401

    def content(self, path: str) -> tuple[str, bytes] | None:
        """Media type and bytes of what a path names."""
        _, _, name, kind, reference = path.partition("?")[0].split("/", 4)
        digest = self.image.index if reference == "latest" else reference
        blob = self.image.blobs.get(digest)
        if blob is None or not (self.any_name or name == "image"):
            return None
        if kind != "manifests":
            return "application/octet-stream", blob
        self.asked.append(path)
        self.open.wait(60)
        return str(json.loads(blob)["mediaType"]), blob


@contextlib.contextmanager
def serving(image: Served) -> Iterator[Registry]:
    """A registry that has the image, for as long as the context lasts."""
    registry = Registry(image)
    registry.open.set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            refusal = registry.refusal(self.headers.get("Authorization"))
            if refusal:
                self.answer(refusal, "text/plain", b"")
            elif self.path == "/v2/":
                self.answer(200, "text/plain", b"")
            elif (found := registry.content(self.path)) is None:
                self.answer(404, "text/plain", b"")
            else:
                self.answer(200, *found)

        do_HEAD = do_GET

        def answer(self, status: int, media_type: str, body: bytes) -> None:
            self.send_response(status)
            if status == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="registry"')
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            half = len(body) // 2
            self.wfile.write(body[:half])
            if "/blobs/" in self.path:
                time.sleep(registry.seconds_per_blob)
            self.wfile.write(body[half:])

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing: pytest shows what matters."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    registry.host = f"127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield registry
    finally:
        registry.open.set()
        server.shutdown()
        server.server_close()
