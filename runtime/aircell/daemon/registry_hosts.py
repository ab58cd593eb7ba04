"""Where a registry is asked, and whose certificates are believed: folders as containerd and Docker have them.

Sources: https://github.com/containerd/containerd/blob/main/docs/hosts.md (``HOST/hosts.toml``) and
https://docs.docker.com/engine/security/certificates/ (``HOST/*.crt``, ``*.cert`` with ``*.key``), which containerd
reads too where there is no hosts.toml.
"""

from __future__ import annotations

import ssl
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from aircell.errors import RightsUnknown
from aircell.reference import DOCKER_HUB

DEFAULT_FOLDERS = ("/etc/containerd/certs.d", "/etc/docker/certs.d")

_ANY_HOST = "_default"


@dataclass(frozen=True)
class Endpoint:
    """One address of a registry's API."""

    url: str
    """With the path, without a slash at its end: ``https://registry.example/v2``."""
    tls: ssl.SSLContext
    mirror: bool = False
    """What it does not give out the registry itself may."""


def endpoints(registry: str, folders: Sequence[str]) -> list[Endpoint]:
    """Where to ask, in this order: mirrors, then the registry itself. Of the folders the first with this host counts.

    Raises RightsUnknown for settings that cannot be used.
    """
    for folder in (Path(folder) / name for name in (registry, _ANY_HOST) for folder in folders):
        try:
            if (folder / "hosts.toml").exists():
                return _from_toml(registry, folder)
            if folder.is_dir():
                return _own(registry, _context(folder, sorted(folder.glob("*.crt")), _pairs(folder)))
        except (OSError, tomllib.TOMLDecodeError, AttributeError, TypeError, ValueError) as error:
            raise RightsUnknown(
                f"the settings for the registry {registry} in {folder} cannot be used: {error}.",
                hint="Mend them; `image_rights.registry_hosts` of aircelld's configuration names the folders.",
            ) from error
    return _own(registry, ssl.create_default_context())


def _own(registry: str, tls: ssl.SSLContext) -> list[Endpoint]:
    host = "registry-1.docker.io" if registry == DOCKER_HUB else registry
    if not _is_loopback(registry):
        return [Endpoint(f"https://{host}/v2", tls)]
    # As Docker does it: on this machine a certificate need not be proved, and there may be none at all.
    return [Endpoint(f"https://{host}/v2", _unverified()), Endpoint(f"http://{host}/v2", tls)]


def _is_loopback(registry: str) -> bool:
    host = registry.rpartition(":")[0] or registry
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _from_toml(registry: str, folder: Path) -> list[Endpoint]:
    settings = tomllib.loads((folder / "hosts.toml").read_text())
    found = [
        _endpoint(url, mirror, folder, mirror=True)
        for url, mirror in settings.get("host", {}).items()
        if "resolve" in mirror.get("capabilities", ["resolve"])
    ]
    if server := settings.get("server"):
        return [*found, _endpoint(server, settings, folder)]
    return [*found, *_own(registry, ssl.create_default_context())]


def _endpoint(url: str, settings: Mapping[str, Any], folder: Path, *, mirror: bool = False) -> Endpoint:
    url = (url if "://" in url else f"https://{url}").rstrip("/")
    if not settings.get("override_path") and not url.endswith("/v2"):
        url += "/v2"
    if settings.get("skip_verify"):
        return Endpoint(url, _unverified(), mirror)
    pairs = [pair if isinstance(pair, list) else [pair] for pair in _listed(settings.get("client"))]
    return Endpoint(url, _context(folder, _listed(settings.get("ca")), pairs), mirror)


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _pairs(folder: Path) -> list[list[Path]]:
    return [[cert, cert.with_suffix(".key")] for cert in sorted(folder.glob("*.cert"))]


def _context(folder: Path, authorities: Sequence[str | Path], pairs: Sequence[Sequence[str | Path]]) -> ssl.SSLContext:
    """This machine's authorities and these, with client certificates; relative paths are below ``folder``."""
    context = ssl.create_default_context()
    for authority in authorities:
        context.load_verify_locations(folder / authority)
    for pair in pairs:
        certificate, key = pair[0], pair[-1]  # which may be one file
        context.load_cert_chain(folder / certificate, folder / key)
    return context


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
