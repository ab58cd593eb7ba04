"""A real docker-registry on the loopback interface, and a server of tokens for one that wants them.

Sources: https://distribution.github.io/distribution/about/configuration/ and, for tokens, .../spec/auth/.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.airflow_stack import free_port
from tests.support.registry import Image, Served

SECRETS = {"alice": "al1ce-secret", "bob": "b0b-secret"}
_HTPASSWD = """\
alice:$2b$04$abcdefghijklmnopqrstuus0FbLlWeB9OMRGxmnCv683t9t9VYDtm
bob:$2b$04$abcdefghijklmnopqrstuu2BG2PeweEx5AfYVzcc819VpjMSK0Txy
"""
"""SECRETS through bcrypt, which is all that docker-registry takes; Python has it no more."""
_START_SECONDS = 30.0


@dataclass
class DockerRegistry:
    """One process. ``storage`` may be another's too: the same images behind other doors."""

    storage: Path
    folder: Path
    auth: Mapping[str, Any] = field(default_factory=dict)
    tls: Certificate | None = None
    host: str = ""
    """``127.0.0.1:PORT``, the same each time that it is started."""
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it listens."""
        self.host = self.host or f"127.0.0.1:{free_port()}"
        self.folder.mkdir(exist_ok=True)
        config = {
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(self.storage)}},
            "http": {"addr": self.host, "secret": "any"} | ({"tls": self.tls.paths()} if self.tls else {}),
        } | ({"auth": dict(self.auth)} if self.auth else {})
        (self.folder / "config.yml").write_text(yaml.safe_dump(config))
        argv = ["setpriv", "--pdeathsig", "KILL", "docker-registry", "serve", str(self.folder / "config.yml")]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_SECONDS
        while not self._listens():
            assert self._process.poll() is None, f"docker-registry ended:\n{self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, "docker-registry does not listen"
            time.sleep(0.02)

    def stop(self) -> None:
        """Idempotent; whoever asks is refused the connection from then on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def log(self) -> Path:
        return self.folder / "registry.log"

    def requests(self, what: str) -> list[str]:
        """The lines of its access log with ``what`` in them."""
        return [line for line in self.log.read_text().splitlines() if "HTTP/1" in line and what in line]

    def reference(self, name: str) -> str:
        return f"{self.host}/{name}:latest"

    def push(self, name: str, image: Served, tag: str = "latest") -> str:
        """Uploads as any client does, which only an open door permits; returns the image's digest."""
        with httpx.Client(base_url=f"http://{self.host}/v2/{name}/", timeout=60) as client:
            for digest, blob in image.blobs.items():
                place = httpx.URL(client.post("blobs/uploads/").raise_for_status().headers["Location"])
                client.put(place.copy_add_param("digest", digest), content=blob).raise_for_status()
            for digest in (*manifests(image), image.index):
                version = tag if digest == image.index else digest
                blob = image.blobs[digest]
                media_type = json.loads(blob)["mediaType"]
                client.put(
                    f"manifests/{version}", content=blob, headers={"Content-Type": media_type}
                ).raise_for_status()
        return image.index

    def _listens(self) -> bool:
        host, _, port = self.host.partition(":")
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0


def manifests(image: Served) -> list[str]:
    """The digests of an index's manifests; none when the tag names a manifest."""
    return [each["digest"] for each in json.loads(image.blobs[image.index]).get("manifests", [])]


def htpasswd(folder: Path) -> dict[str, Any]:
    """The setting ``auth`` for whoever has one of SECRETS."""
    file = folder / "htpasswd"
    file.write_text(_HTPASSWD)
    return {"htpasswd": {"realm": "test", "path": str(file)}}


class Certificate:
    """A certificate of 127.0.0.1 that nobody but itself vouches for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "aircell test")])
        now = datetime.now(timezone.utc)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=2))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        self.file = folder / "ca.crt"
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        (folder / "ca.key").write_bytes(
            self.key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    def paths(self) -> dict[str, str]:
        """The setting ``http.tls``."""
        return {"certificate": str(self.file), "key": str(self.folder / "ca.key")}


@dataclass
class Tokens:
    """Gives each user tokens for the repositories that are theirs, and nobody in particular those of ``public``."""

    certificate: Certificate
    repositories: dict[str, set[str]]
    public: set[str] = field(default_factory=set)
    identity_tokens: dict[str, str] = field(default_factory=dict)
    """To users."""
    realm: str = ""
    given: list[tuple[str, str]] = field(default_factory=list)
    """User and scope of each token that was asked for."""

    @property
    def auth(self) -> dict[str, Any]:
        """The setting of a docker-registry."""
        bundle = str(self.certificate.file)
        return {"token": {"realm": self.realm, "service": "test", "issuer": "test", "rootcertbundle": bundle}}

    def token(self, user: str, scope: str) -> str:
        self.given.append((user, scope))
        _, repository, _ = scope.split(":")
        permitted = repository in self.public | self.repositories.get(user, set())
        now = int(time.time())
        access = [{"type": "repository", "name": repository, "actions": ["pull"] if permitted else []}]
        claims = {"iss": "test", "sub": user, "aud": "test", "nbf": now - 60, "iat": now, "exp": now + 600, "jti": "1"}
        der = self.certificate.certificate.public_bytes(serialization.Encoding.DER)
        headers = {"x5c": [base64.b64encode(der).decode()]}
        return jwt.encode({**claims, "access": access}, self.certificate.key, algorithm="ES256", headers=headers)


def known(user: str, password: str) -> str | None:
    """Whoever gives the right password, or None."""
    return user if SECRETS.get(user) == password else None


@contextlib.contextmanager
def tokens(certificate: Certificate, repositories: Mapping[str, set[str]]) -> Iterator[Tokens]:
    """The server, for as long as the context lasts."""
    state = Tokens(certificate, dict(repositories))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            self.answer(self.user(), query["scope"])

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            form = {name: values[0] for name, values in parse_qs(body).items()}
            if form["grant_type"] == "password":
                self.answer(known(form["username"], form["password"]), form["scope"])
            else:
                self.answer(state.identity_tokens.get(form["refresh_token"]), form["scope"])

        def user(self) -> str | None:
            """Empty without credentials, None with wrong ones."""
            given = self.headers.get("Authorization")
            if given is None:
                return ""
            user, _, password = base64.b64decode(given.removeprefix("Basic ")).decode().partition(":")
            return known(user, password)

        def answer(self, user: str | None, scope: str) -> None:
            token = "" if user is None else state.token(user, scope)
            body = json.dumps({"token": token, "access_token": token}).encode()
            self.send_response(401 if user is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing: pytest shows what matters."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.realm = f"http://127.0.0.1:{server.server_address[1]}/token"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Shop:
    """One storage with three doors, and a shelf's worth of images."""

    open: DockerRegistry
    """For everybody; the door through which images come in."""
    locked: DockerRegistry
    """For SECRETS, with a certificate that nobody knows."""
    team: DockerRegistry
    """Each repository for whom ``tokens`` says."""
    tokens: Tokens

    @property
    def certificate(self) -> Path:
        assert self.locked.tls is not None
        return self.locked.tls.file

    def stock(self, name: str, image: Served | None = None) -> str:
        """Puts an image like no other on the shelf; returns its digest."""
        return self.open.push(name, image or Image())


@contextlib.contextmanager
def shop(folder: Path) -> Iterator[Shop]:
    """The three, for as long as the context lasts."""
    certificate = Certificate(folder)
    with contextlib.ExitStack() as stack:
        giver = stack.enter_context(tokens(certificate, {"alice": set(), "bob": set()}))
        storage = folder / "storage"
        made = Shop(
            DockerRegistry(storage, folder / "open"),
            DockerRegistry(storage, folder / "locked", auth=htpasswd(folder), tls=certificate),
            DockerRegistry(storage, folder / "team", auth=giver.auth),
            giver,
        )
        for registry in (made.open, made.locked, made.team):
            stack.callback(registry.stop)
            registry.start()
        yield made
