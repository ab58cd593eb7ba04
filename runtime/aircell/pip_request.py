"""What the installer in an image is told: pip itself, and how pip is configured on this node.

Of the node's configuration only what says where packages come from is passed on. Paths mean nothing in an image, so of
those the certificates alone go along, by their content. All of it is for one installation: none is left in the image.
"""

from __future__ import annotations

import ast
import base64
import functools
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pip

from aircell.errors import AircellError

PASSED = ("index-url", "extra-index-url", "trusted-host", "no-index", "find-links", "proxy", "timeout", "retries")
"""Options of pip that an image may know."""
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
_AUTHORITIES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
"""Where distributions keep the certificates that they trust; what a node's operator adds is among them."""


def request(requirements: Sequence[str], *, wheels_only: bool) -> dict[str, Any]:
    """The arguments of :func:`aircell.installer.install`. Takes a second. Raises AircellError."""
    settings = configuration()
    return {
        "requirements": list(requirements),
        "wheels_only": wheels_only,
        "pip": _archive(),
        "settings": environment(settings, os.environ),
        "certificates": _certificates(settings.get("cert"), os.environ),
    }


def configuration() -> dict[str, str]:
    """pip's options on this node, from its files and variables, by the names that they have in files.

    pip itself is asked, in an interpreter of its own. Raises AircellError when its files are broken.
    """
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if asked.returncode != 0:
        raise AircellError(
            "pip's configuration on this node cannot be read.",
            hint="`pip config debug` names the files.",
            detail=asked.stderr.strip(),
        )
    return options(asked.stdout.splitlines())


def options(lines: Sequence[str]) -> dict[str, str]:
    """The same from the output of ``pip config list``: options of ``install`` go before global ones, and variables
    before both."""
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in lines:
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in found:
            found[section][name.replace("_", "-")] = ast.literal_eval(value)
    merged = found["global"] | found["install"] | found[":env:"]
    if "default-timeout" in merged:
        merged["timeout"] = merged["default-timeout"]
    return merged


def environment(configured: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that tell pip in an image the same."""
    passed = {f"PIP_{name.upper().replace('-', '_')}": configured[name] for name in PASSED if name in configured}
    if links := passed.pop("PIP_FIND_LINKS", ""):
        passed["PIP_FIND_LINKS"] = " ".join(link for link in links.split() if link.startswith(("http:", "https:")))
    proxies = {name: value for name, value in variables.items() if name.lower() in _PROXIES}
    return {**proxies, **passed}


def _certificates(configured: str | None, variables: Mapping[str, str]) -> str:
    for path in (configured, variables.get("SSL_CERT_FILE"), *_AUTHORITIES):
        if path and Path(path).is_file():
            return Path(path).read_text()
    return ""


@functools.cache
def _archive() -> str:
    """pip's package, zipped, in base 64."""
    package = Path(pip.__file__).parent
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(package.rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                archive.write(path, Path("pip") / path.relative_to(package))
    return base64.b64encode(target.getvalue()).decode()
