"""Registry credentials: the configuration names where they are, and nothing keeps them longer than one pull."""

from __future__ import annotations

from pathlib import Path

from pydantic import model_validator

from aircell.backends.base import RegistryAuth
from aircell.errors import InvalidSpec
from aircell.spec import AbsolutePath, Model


class Credentials(Model):
    """One set, by reference: a password or an identity token, each in a file of its own that only root can read."""

    username: str = ""
    password_file: AbsolutePath | None = None
    identity_token_file: AbsolutePath | None = None

    @model_validator(mode="after")
    def _one_secret(self) -> Credentials:
        if (self.password_file is None) == (self.identity_token_file is None):
            raise ValueError("give either password_file or identity_token_file")
        return self

    def read(self) -> RegistryAuth:
        """Raises InvalidSpec when the file cannot be read."""
        return RegistryAuth(
            username=self.username,
            password=_secret(self.password_file),
            identity_token=_secret(self.identity_token_file),
        )


def _secret(path: str | None) -> str:
    if path is None:
        return ""
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec(
            f"the registry credentials in {path} cannot be read: {error}.",
            hint="Mend the file, or `registry_credentials` in aircelld's configuration.",
        ) from error
