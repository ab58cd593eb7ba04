"""From a gRPC status to our tree of errors: the one place that knows what the engine's words mean.

containerd answers most failures with code UNKNOWN and a sentence, so the sentence has to be read. The patterns come
from containerd 1.6 and 2.3 with runc 1.1 and crun 1.8; what they do not match becomes an EngineError that quotes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from grpc import StatusCode

from aircell.backends import pull_failures as failures
from aircell.errors import (
    AircellError,
    EngineError,
    EngineUnavailable,
    ImageError,
    NotFound,
    StartupFailed,
    UnsupportedSpec,
)
from aircell.spec import SandboxSpec

Refine = Callable[[str], AircellError | None]
"""Reads the engine's sentence for one kind of call; None when it is nothing special."""

_NOT_YET = "server is not initialized yet"
"""What containerd's CRI part says, with the status UNKNOWN, while it still recovers what ran before its restart."""

_IN_THE_WAY = re.compile(r"failed to rename: rename \S+ \S+: (file exists|directory not empty)")

_PULL = (
    (r"no match for platform|no matching manifest|does not provide the specified platform", failures.OTHER_PLATFORM),
    (
        r"insufficient_scope|authorization failed|401 Unauthorized|403 Forbidden|pull access denied"
        r"|authentication required",
        failures.UNAUTHORIZED,
    ),
    (r"no space left on device", failures.NO_SPACE),
    (r"unexpected commit digest", failures.CORRUPTED),
    (r"cannot unmarshal|invalid character|unsupported manifest|unexpected media type", failures.BAD_MANIFEST),
    (r"read expected number of bytes|short read", failures.BROKE_OFF),
    (
        r"no such host|connection refused|i/o timeout|network is unreachable|no route to host|server misbehaving"
        r"|TLS handshake timeout|connection reset|\bEOF\b|deadline exceeded",
        failures.UNREACHABLE,
    ),
    (r"\b5\d\d [A-Z]|unexpected status.*: 5\d\d", failures.BROKEN),
    (r"\b429\b|toomanyrequests", failures.LIMITED),
    (r"invalid reference format|failed to parse image", failures.NOT_A_REFERENCE),
    (r"not found", failures.NOT_FOUND),
)

_CREATE: tuple[tuple[str, type[AircellError], str, str], ...] = (
    (
        r"no users found|unable to find user",
        ImageError,
        "the image has no user {user}.",
        "Correct `user` in the spec, or give it as a number.",
    ),
    (
        r"CDI device",
        UnsupportedSpec,
        "the node does not have the devices {devices}.",
        "Correct `devices`, or install their CDI specification on the node.",
    ),
)

_START: tuple[tuple[str, str], ...] = (
    (
        r"executable file .*not found|no such file or directory.*exec|exec.*no such file or directory",
        "the interpreter is not in the image.",
    ),
    (r"exec format error", "the interpreter in the image is for another architecture."),
    (r"exec.*permission denied", "the interpreter in the image may not be executed by the sandbox's user."),
)


class SnapshotInTheWay(EngineError):
    """A snapshot that an earlier containerd was making when it was killed: its folder has the next one's number. The
    call that fails over it removes it (``createSnapshot`` of containerd's ``plugins/snapshots/overlay``)."""


def translate(
    code: StatusCode, details: str, *, doing: str, socket: str, seconds: float, sandbox: str, refine: Refine | None
) -> AircellError:
    """The error for a call that failed with ``code`` and ``details`` while ``doing``, within its ``seconds``."""
    if code is StatusCode.UNAVAILABLE or _NOT_YET in details:
        return EngineUnavailable(
            f"the container engine does not answer on {socket}, {doing}: {details}.",
            hint="Check that it runs and that aircelld may open its socket; `aircell doctor` tells more.",
            sandbox=sandbox,
        )
    if refine is not None and (special := refine(details)) is not None:
        special.sandbox = sandbox
        return special
    if code is StatusCode.DEADLINE_EXCEEDED:
        return EngineUnavailable(
            f"the container engine took more than {seconds:.0f} s, {doing}.",
            hint="The node may be overloaded; look at the engine's log.",
            sandbox=sandbox,
        )
    if code is StatusCode.NOT_FOUND:
        return NotFound(f"the container engine knows no such thing, {doing}: {details}", sandbox=sandbox)
    cls = SnapshotInTheWay if _IN_THE_WAY.search(details) else EngineError
    return cls(f"the container engine failed, {doing}: {details}", hint="Look at the engine's log.", sandbox=sandbox)


def pulling(reference: str) -> Refine:
    """Reads the failure of a pull."""
    return failures.reading(_PULL, reference, "the engine's log")


def creating(spec: SandboxSpec) -> Refine:
    """Reads the failure of making a container: does the spec ask for what is not there?"""

    def refine(details: str) -> AircellError | None:
        for pattern, cls, what, hint in _CREATE:
            if re.search(pattern, details):
                return cls(what.format(user=spec.user, devices=", ".join(spec.devices)), hint=hint, detail=details)
        return None

    return refine


def starting(details: str) -> AircellError | None:
    """Reads the failure of a start: is it the image's fault?"""
    for pattern, what in _START:
        if re.search(pattern, details, re.IGNORECASE | re.DOTALL):
            hint = "Set `python` in the spec to an interpreter that the image has (3.9 or later), or use another image."
            return StartupFailed(what, hint=hint, detail=details)
    return None
