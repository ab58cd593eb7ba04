"""From what pip and image builders print to our tree of errors: the one place that knows what their words mean.

The patterns come from pip 26.3, buildah 1.28 and Docker 20.10 with BuildKit; what they do not match is quoted.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from aircell.errors import AircellError, BuildFailed, BuildUnavailable

TAIL = 40
"""Lines of output that an error keeps."""

_KINDS: tuple[tuple[str, type[AircellError], str, str], ...] = (
    (
        r"(?i)no space left|disk quota exceeded",
        BuildUnavailable,
        "there is no space left for it",
        "Remove unused images, or enlarge the disk of the container engine and of aircelld's state folder; a `scratch` "
        "limit in the spec counts too.",
    ),
    (
        r"ResolutionImpossible|conflicting dependencies",
        BuildFailed,
        "its requirements contradict each other, or what the image's Airflow needs",
        "Loosen the versions; pip's explanation is below.",
    ),
    (
        r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ProxyError|SSLError|ReadTimeoutError"
        r"|Could not fetch URL|Credentials not correct|is not a trusted or secure host",
        BuildUnavailable,
        "the package index cannot be reached",
        "Check pip's configuration where aircelld runs (`pip config list`), the network and the proxy.",
    ),
    (
        r"No matching distribution found for (?P<what>[^\n]+)",
        BuildFailed,
        "no package index of this node has {what} for the image's Python and architecture",
        "Correct its name or version. Where only wheels are permitted (`policy.requirements` of aircelld), a package "
        "without one counts as missing.",
    ),
    (
        r"Invalid requirement: (?P<what>[^\n]+)",
        BuildFailed,
        "{what} is no requirement",
        "Write NAME, NAME==VERSION or the like.",
    ),
    (
        r"initializing source [^\n]*|pull access denied|manifest unknown|failed to resolve source metadata",
        BuildFailed,
        "the image that it begins with cannot be had",
        "Check its name, the network and the builder's credentials.",
    ),
    (
        r"buildx component is missing",
        BuildUnavailable,
        "this command line of Docker lacks buildx",
        "Install it (Debian: docker-buildx), or buildah.",
    ),
    (
        r"unknown instruction|Unknown instruction|dockerfile parse error|parsing main Dockerfile",
        BuildFailed,
        "its Containerfile is malformed",
        "The builder names the line below.",
    ),
)


def translate(what: str, output: Collection[str]) -> AircellError:
    """Why ``what``, an image, could not be built, from the lines that the builder printed last."""
    text, detail = "\n".join(output), "\n".join(list(output)[-TAIL:])
    for pattern, kind, why, hint in _KINDS:
        if match := re.search(pattern, text):
            return kind(f"{what} could not be built: {why.format(**match.groupdict())}.", hint=hint, detail=detail)
    return BuildFailed(f"{what} could not be built.", hint="The builder's last lines are below.", detail=detail)
