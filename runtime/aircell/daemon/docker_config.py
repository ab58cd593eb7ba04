"""Docker's ``config.json``, and the same file as the content of a Kubernetes secret of type ``dockerconfigjson``.

Sources: https://docs.docker.com/reference/cli/docker/login/ for credential stores and helpers, and
https://kubernetes.io/docs/concepts/containers/images/#config-json for keys with patterns and paths.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aircell.backends.base import RegistryAuth
from aircell.daemon import credential_helper
from aircell.errors import InvalidSpec
from aircell.reference import Reference, registry_name

T = TypeVar("T")

_SCHEME = re.compile(r"^https?://")
_API_VERSIONS = ("v1", "v2")
"""What Docker's own keys end in; it is not part of a repository's name."""


class _Entry(BaseModel):
    model_config = ConfigDict(hide_input_in_errors=True)

    auth: str = ""
    """``user:password`` in base64."""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _File(BaseModel):
    model_config = ConfigDict(hide_input_in_errors=True)

    auths: dict[str, _Entry] = Field(default_factory=dict)
    helpers: dict[str, str] = Field(default_factory=dict, alias="credHelpers")
    store: str = Field("", alias="credsStore")


async def find(path: str, image: Reference, wanted: str) -> RegistryAuth | None:
    """The credentials that the file has for an image: from its registry's helper, else the store, else the file itself.

    ``wanted`` says in errors whose credentials for which registry these are. Raises InvalidSpec for a file that
    cannot be used, and what ``credential_helper.ask`` raises.
    """
    try:
        file = _File.model_validate_json(Path(path).read_bytes())
        entry = best(file.auths, image)
        auth = _auth(entry) if entry else None
    except (OSError, ValidationError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not Docker's config.json"
        raise InvalidSpec(
            f"{wanted} cannot be had from {path}: {reason}.",
            hint="Mend the file, or `registry_credentials` in aircelld's configuration.",
        ) from error
    helper = best(file.helpers, image) or file.store
    return (await credential_helper.ask(helper, image.registry, wanted) if helper else None) or auth


def best(entries: Mapping[str, T], image: Reference) -> T | None:
    """The entry whose key covers the image and says most about it."""
    keys = [key for key in entries if covers(key, image)]
    return entries[max(keys, key=len)] if keys else None


def covers(key: str, image: Reference) -> bool:
    """Whether a key is for the image: a host, with ``*`` within its parts, and perhaps the beginning of a path."""
    host, _, path = _SCHEME.sub("", key).partition("/")
    path = path.strip("/")
    if path and path not in _API_VERSIONS and not f"{image.repository}/".startswith(f"{path}/"):
        return False
    patterns, parts = re.split(r"[.:]", registry_name(host)), re.split(r"[.:]", image.registry)
    return len(patterns) == len(parts) and all(map(fnmatchcase, parts, patterns))


def _auth(entry: _Entry) -> RegistryAuth | None:
    """Raises ValueError for what is not base64 of a name and a password."""
    if entry.identitytoken:
        return RegistryAuth(identity_token=entry.identitytoken)
    username, password = entry.username, entry.password
    if entry.auth:
        try:
            username, _, password = base64.b64decode(entry.auth, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise ValueError("auth is not base64") from None  # the original quotes what it could not decode
    return RegistryAuth(username=username, password=password.rstrip("\0")) if username else None
