"""How a pull fails, whatever the engine: what is said about it, and what to do next.

Engines tell it in sentences of their own; each backend's ``errors.py`` knows which sentence means which of these.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aircell.errors import (
    AircellError,
    ImageError,
    ImageNotFound,
    ImagePlatformMismatch,
    ImagePullFailed,
    ImageUnauthorized,
    InvalidSpec,
    RegistryFailed,
)


@dataclass(frozen=True)
class PullFailure:
    """One way to fail."""

    cls: type[AircellError]
    what: str
    """Continues ``the image NAME ...``."""
    hint: str

    def error(self, reference: str, details: str) -> AircellError:
        return self.cls(f"the image {reference} {self.what} ({details}).", hint=self.hint)


OTHER_PLATFORM = PullFailure(
    ImagePlatformMismatch, "has no variant for this node's architecture", "Build or name one that has."
)
UNAUTHORIZED = PullFailure(
    ImageUnauthorized,
    "may not be pulled with the credentials given, or does not exist",
    "Check its name, and registry_credentials in the spec and in aircelld's configuration.",
)
NO_SPACE = PullFailure(
    ImagePullFailed,
    "does not fit on the node's disk",
    "Remove unused images (`aircell images` lists them) or enlarge the disk of the engine's images.",
)
CORRUPTED = PullFailure(
    ImagePullFailed,
    "came with a layer that is not what its digest says",
    "Its copy in the registry, or a proxy on the way, is damaged: push it again, or clear that proxy's cache.",
)
BAD_MANIFEST = PullFailure(
    ImageError,
    "has a manifest that the engine cannot read",
    "Build and push it again, as an OCI or Docker image.",
)
BROKE_OFF = PullFailure(
    RegistryFailed,
    "could not be pulled because the registry broke off",
    "Look at the registry's log and at proxies on the way; another try may succeed.",
)
UNREACHABLE = PullFailure(
    RegistryFailed,
    "could not be pulled because the registry cannot be reached",
    "Check the registry's name, the network and the engine's proxy; another try may succeed.",
)
BROKEN = PullFailure(
    RegistryFailed, "could not be pulled because the registry failed", "Look at its log; another try may succeed."
)
LIMITED = PullFailure(ImagePullFailed, "was refused because the registry limits pulls", "Try again later.")
STALLED = PullFailure(
    ImagePullFailed,
    "stopped coming",
    "Look at the registry and the network; `pull_stall_timeout` of the backend says how long to wait.",
)
NOT_A_REFERENCE = PullFailure(InvalidSpec, "is not an image reference", "Correct the image.")
NOT_FOUND = PullFailure(ImageNotFound, "does not exist in its registry", "Check its name and tag.")


def reading(
    patterns: Sequence[tuple[str, PullFailure]], reference: str, log: str
) -> Callable[[str], AircellError | None]:
    """Makes errors of an engine's sentences by the first pattern that is in them; ``log`` is where more may stand."""

    def read(details: str) -> AircellError | None:
        for pattern, failure in patterns:
            if re.search(pattern, details, re.IGNORECASE):
                return failure.error(reference, details)
        return ImageError(f"the image {reference} cannot be pulled: {details}", hint=f"Look at {log}.")

    return read
