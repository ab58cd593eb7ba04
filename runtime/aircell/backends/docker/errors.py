"""From a failed request to our tree of errors: the one place that knows what the engine's words mean.

Statuses are those of Docker's Engine API; 900 is aiodocker's own for an engine that does not answer, 0 for an error
inside a stream that began well. The patterns come from Docker 20.10; what they do not match is quoted.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

import aiohttp
from aiodocker import DockerError

from aircell.backends import pull_failures as failures
from aircell.errors import (
    AircellError,
    EngineError,
    EngineUnavailable,
    ImageError,
    InvalidSpec,
    NotFound,
    StartupFailed,
)

Refine = Callable[[str], AircellError | None]
"""Reads the engine's sentence for one kind of call; None when it is nothing special."""

NO_ANSWER = 900
_NOT_FOUND = 404

_PULL = (
    (r"no matching manifest|does not match the specified platform", failures.OTHER_PLATFORM),
    (
        r"no basic auth credentials|unauthorized|authentication required|pull access denied|access forbidden"
        r"|HTTP 40[13] response",
        failures.UNAUTHORIZED,
    ),
    (r"no space left on device", failures.NO_SPACE),
    (r"verification failed for digest", failures.CORRUPTED),
    (r"cannot unmarshal|invalid character|unsupported manifest|unsupported media type", failures.BAD_MANIFEST),
    (r"unexpected EOF|/blobs/.*connection re(fused|set)", failures.BROKE_OFF),
    (
        r"no such host|connection refused|i/o timeout|network is unreachable|no route to host|server misbehaving"
        r"|TLS handshake timeout|connection reset|\bEOF\b|context deadline exceeded|Client\.Timeout|request canceled",
        failures.UNREACHABLE,
    ),
    (r"HTTP status: 5\d\d|HTTP 5\d\d response|\b5\d\d [A-Z][a-z]+", failures.BROKEN),
    (r"\b429\b|toomanyrequests", failures.LIMITED),
    (r"invalid reference format", failures.NOT_A_REFERENCE),
    (r"not found|manifest unknown|HTTP 404 response|repository does not exist", failures.NOT_FOUND),
)

_START: tuple[tuple[str, str], ...] = (
    (r"executable file .*not found|no such file or directory", "the interpreter is not in the image."),
    (r"exec format error", "the interpreter in the image is for another architecture."),
    (r"permission denied", "the interpreter in the image may not be executed by the sandbox's user."),
)


def translate(
    error: Exception, *, doing: str, host: str, seconds: float, sandbox: str, refine: Refine | None
) -> AircellError:
    """The error for a request that failed while ``doing``, within its ``seconds``."""
    if isinstance(error, asyncio.TimeoutError):
        return EngineUnavailable(
            f"Docker took more than {seconds:.0f} s, {doing}.",
            hint="The node may be overloaded; look at dockerd's log.",
            sandbox=sandbox,
        )
    if isinstance(error, aiohttp.ClientError) or (isinstance(error, DockerError) and error.status == NO_ANSWER):
        return EngineUnavailable(
            f"Docker does not answer on {host}, {doing}: {error}.",
            hint="Check that dockerd runs and that aircelld may open its socket; `aircell doctor` tells more.",
            sandbox=sandbox,
        )
    if not isinstance(error, DockerError):
        raise error
    details = error.message
    if refine is not None and (special := refine(details)) is not None:
        special.sandbox = sandbox
        return special
    if "invalid reference format" in details:
        return InvalidSpec(f"not an image reference, {doing}: {details}", hint="Correct the image.", sandbox=sandbox)
    if "HTTP request to an HTTPS server" in details:
        return EngineUnavailable(
            f"Docker on {host} wants TLS, {doing}.",
            hint="Set `backends.docker.tls`, or DOCKER_TLS_VERIFY and DOCKER_CERT_PATH, for aircelld.",
            sandbox=sandbox,
        )
    if error.status == _NOT_FOUND:
        return NotFound(f"Docker knows no such thing, {doing}: {details}", sandbox=sandbox)
    return EngineError(f"Docker failed, {doing}: {details}", hint="Look at dockerd's log.", sandbox=sandbox)


def pulling(reference: str) -> Refine:
    """Reads the failure of a pull."""
    return failures.reading(_PULL, reference, "dockerd's log")


def starting(details: str) -> AircellError | None:
    """Reads the failure of a start: is it the image's fault?"""
    if user := re.search(r"unable to find user ([^:]*)", details):
        hint = "Correct `user` in the spec, or give it as a number."
        return ImageError(f"the image has no user {user[1]}.", hint=hint, detail=details)
    for pattern, what in _START:
        if re.search(r"exec: .*" + pattern, details, re.IGNORECASE | re.DOTALL):
            hint = "Set `python` in the spec to an interpreter that the image has (3.9 or later), or use another image."
            return StartupFailed(what, hint=hint, detail=details)
    return None
