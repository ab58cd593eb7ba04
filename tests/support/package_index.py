"""A package index that serves small wheels of its own making to whoever has the password, on every interface.

Sources: the simple repository API and the wheel format, https://packaging.python.org/specifications/.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PASSWORD = "1ndex-s3cret"


class PackageIndex:
    """``packages`` are name -> source of its one module; each has version 1.0. ``open`` unset holds up all answers."""

    def __init__(self, packages: Mapping[str, str], port: int) -> None:
        self.wheels = {f"{name}-1.0-py3-none-any.whl": _wheel(name, source) for name, source in packages.items()}
        self.port = port
        self.asked: list[str] = []
        self.open = threading.Event()
        self.open.set()

    def pip_conf(self, host: str) -> str:
        """What pip needs to use it under that address, and no other."""
        url = f"http://user:{PASSWORD}@{host}:{self.port}/simple"
        return f"[global]\nindex-url = {url}\ntrusted-host = {host}\nretries = 1\n"

    def answer(self, path: str) -> bytes | None:
        """The page or the wheel at a path."""
        self.asked.append(path)
        self.open.wait(60)
        name = path.strip("/").split("/")[-1]
        if path.startswith("/wheels/"):
            return self.wheels.get(name)
        links = [
            f'<a href="/wheels/{wheel}#sha256={hashlib.sha256(content).hexdigest()}">{wheel}</a>'
            for wheel, content in self.wheels.items()
            if wheel.startswith(f"{name}-")
        ]
        return f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode() if links else None


@contextlib.contextmanager
def serving(packages: Mapping[str, str]) -> Iterator[PackageIndex]:
    """The index, until the context ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = "Basic " + base64.b64encode(f"user:{PASSWORD}".encode()).decode()
            if self.headers.get("Authorization") != allowed:
                self.send_response(401)
                self.send_header("WWW-Authenticate", "Basic")
                self.end_headers()
                return
            content = index.answer(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("0.0.0.0", 0), Handler)
    index = PackageIndex(packages, server.server_address[1])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield index
    finally:
        index.open.set()
        server.shutdown()
        server.server_close()


def _wheel(name: str, source: str) -> bytes:
    module, info = name.replace("-", "_"), f"{name}-1.0.dist-info"
    files = {
        f"{module}.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in files))
    return target.getvalue()
