"""An image reference, taken apart as Docker and containerd do it.

Source: the grammar and the normalisation of https://pkg.go.dev/github.com/distribution/reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

DOCKER_HUB = "docker.io"
_HUB_NAMES = ("docker.io", "index.docker.io", "registry-1.docker.io")


@dataclass(frozen=True)
class Reference:
    """Where an image is: ``str`` of it is its full name, the same for every way to write it."""

    registry: str
    """Host, with the port if there is one; Docker Hub is ``docker.io`` however it was called."""
    repository: str
    version: str
    """A tag, or a digest such as ``sha256:...``, which wins over a tag beside it."""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Of any text; whether it is a valid reference the engine finds out."""
        name, _, digest = text.partition("@")
        first, slash, rest = name.partition("/")
        if not slash or not ("." in first or ":" in first or first == "localhost"):
            first, rest = DOCKER_HUB, name
        repository, colon, tag = rest.rpartition(":")
        if not colon:
            repository, tag = rest, "latest"
        registry = registry_name(first)
        if registry == DOCKER_HUB and "/" not in repository:
            repository = f"library/{repository}"
        return cls(registry, repository, digest or tag)

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}{'@' if ':' in self.version else ':'}{self.version}"


def registry_name(host: str) -> str:
    """``host`` under the one name that its registry has here."""
    return DOCKER_HUB if host in _HUB_NAMES else host


def own_digest(reference: str, digests: Sequence[str]) -> str:
    """Of an image's digests (``repo@sha256:...``) the one in the reference's own repository, else the first, if any."""
    name = Reference.parse(reference)
    for digest in digests:
        each = Reference.parse(digest)
        if (each.registry, each.repository) == (name.registry, name.repository):
            return digest
    return digests[0] if digests else ""
