"""What aircelld's configuration says under ``backends: docker:``, and the connection that it means."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import aiohttp
from pydantic import Field

from aircell.errors import InvalidSpec
from aircell.spec import AbsolutePath, Model

Seconds = Annotated[float, Field(gt=0)]

DEFAULT_HOST = "unix:///var/run/docker.sock"


class DockerConfig(Model):
    """One Docker engine and how patient to be with it."""

    host: Annotated[str, Field(pattern=r"^(unix:///|tcp://).+")] | None = None
    """``unix:///path`` or ``tcp://host:port``; None takes ``DOCKER_HOST``, else Docker's own default. Either way the
    engine has to be on aircelld's node: a sandbox mounts folders of it."""
    tls: AbsolutePath | None = None
    """Folder with ca.pem, cert.pem and key.pem; None takes ``DOCKER_CERT_PATH`` where ``DOCKER_TLS_VERIFY`` is set."""
    pod_network: str = "bridge"
    """Which of the engine's networks ``network: pod`` means."""
    cgroup_parent: str | None = None
    """Where sandboxes go whose spec names no parent; None leaves it to the engine."""
    call_timeout: Seconds = 15.0
    """For calls that only ask."""
    make_timeout: Seconds = 120.0
    """For calls that make, start, stop or remove something."""
    pull_stall_timeout: Seconds = 300.0
    """For a pull of which nothing more is heard."""
    pull_timeout: Seconds = 3600.0


def with_environment(config: DockerConfig, environment: Mapping[str, str]) -> DockerConfig:
    """What the configuration leaves open, as Docker's own clients fill it in."""
    tls = config.tls
    if tls is None and environment.get("DOCKER_TLS_VERIFY"):
        tls = environment.get("DOCKER_CERT_PATH") or str(Path.home() / ".docker")
    return config.model_copy(update={"host": config.host or environment.get("DOCKER_HOST") or DEFAULT_HOST, "tls": tls})


def connection(config: DockerConfig) -> tuple[str, str, aiohttp.BaseConnector]:
    """The engine's address, the base URL, and a connector for it.

    The connector has no limit, because each sandbox that runs is one request that waits for its end. A connection
    serves one request, so that none is left over from before the engine was restarted. Raises InvalidSpec for a host
    or certificates that cannot be used. To be called in the event loop.
    """
    config = with_environment(config, os.environ)
    scheme, _, address = (config.host or "").partition("://")
    if scheme == "unix":
        return address, "http://localhost", aiohttp.UnixConnector(address, limit=0, force_close=True)
    if scheme != "tcp":
        raise InvalidSpec(
            f"{config.host!r} is no address of a Docker engine that aircelld can use.",
            hint="Write unix:///path or tcp://host:port in `backends.docker.host`, or in DOCKER_HOST.",
        )
    if config.tls is None:
        return address, f"http://{address}", aiohttp.TCPConnector(limit=0, force_close=True)
    context = _tls(Path(config.tls))
    return address, f"https://{address}", aiohttp.TCPConnector(limit=0, force_close=True, ssl=context)


def _tls(folder: Path) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=folder / "ca.pem")
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    except OSError as error:  # ssl.SSLError among them
        raise InvalidSpec(
            f"the certificates for the Docker engine in {folder} cannot be used: {error}.",
            hint="The folder needs ca.pem, cert.pem and key.pem; see `backends.docker.tls`.",
        ) from error
    return context
