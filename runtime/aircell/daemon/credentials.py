"""Registry credentials: the configuration names where they are, and nothing keeps them longer than one request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from aircell.backends.base import RegistryAuth
from aircell.daemon import credential_helper, docker_config
from aircell.errors import InvalidSpec
from aircell.reference import Reference
from aircell.spec import AbsolutePath, Model

_SOURCES = ("password_file", "identity_token_file", "helper", "docker_config")


class Credentials(Model):
    """One set, by reference: files that only root can read, or a program that answers with what is valid now."""

    registry: str | None = None
    """Whom they may be shown to: a host, or the beginning of an image's name. Of ``docker_config`` the file says it."""
    username: str = ""
    password_file: AbsolutePath | None = None
    identity_token_file: AbsolutePath | None = None
    helper: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None
    """NAME of a program ``docker-credential-NAME``."""
    docker_config: AbsolutePath | None = None
    """Docker's config.json, or the file of a Kubernetes secret of type dockerconfigjson."""

    @model_validator(mode="after")
    def _one_source(self) -> Credentials:
        if sum(getattr(self, source) is not None for source in _SOURCES) != 1:
            raise ValueError(f"give one of {', '.join(_SOURCES)}")
        if (self.registry is None) == (self.docker_config is None):
            raise ValueError("give `registry`, the host that they are for, unless it is a docker_config, which has it")
        return self

    async def read(self, image: Reference, wanted: str) -> RegistryAuth | None:
        """What there is for an image; None when nothing is. ``wanted`` names these credentials in errors.

        Raises InvalidSpec when the source cannot be used as it is, CredentialsUnavailable when it fails.
        """
        if self.docker_config is not None:
            return await docker_config.find(self.docker_config, image, wanted)
        if self.registry is None or not docker_config.covers(self.registry, image):
            return None
        if self.helper is not None:
            return await credential_helper.ask(self.helper, image.registry, wanted)
        return RegistryAuth(
            username=self.username,
            password=_secret(self.password_file, wanted),
            identity_token=_secret(self.identity_token_file, wanted),
        )


class Keyring:
    """Every set of credentials that this node has, by name."""

    def __init__(self, credentials: Mapping[str, Credentials]) -> None:
        self._credentials = credentials

    async def read(self, name: str | None, image: Reference) -> RegistryAuth | None:
        """The credentials of that name for an image's registry, read anew; None for no name.

        Raises InvalidSpec for a name that there is not, or that has nothing for this registry, and what
        ``Credentials.read`` raises.
        """
        if name is None:
            return None
        if name not in self._credentials:
            raise InvalidSpec(
                f"this node has no registry credentials called {name!r} for {image.registry}; "
                f"it has: {', '.join(self._credentials) or 'none'}.",
                hint="Add them under `registry_credentials` in aircelld's configuration.",
            )
        auth = await self._credentials[name].read(image, f"the registry credentials {name!r} for {image.registry}")
        if auth is None:
            raise InvalidSpec(
                f"the registry credentials {name!r} hold nothing for {image.registry}/{image.repository}.",
                hint="Add that registry to them, name others, or leave `registry_credentials` out for a public image.",
            )
        return auth


def _secret(path: str | None, wanted: str) -> str:
    if path is None:
        return ""
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InvalidSpec(
            f"{wanted} cannot be read from {path}: {reason}.",
            hint="Mend the file, or `registry_credentials` in aircelld's configuration.",
        ) from error
