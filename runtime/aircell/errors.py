"""The one tree of errors, and its form on the wire.

Three families read differently in a task log, and every class belongs to one:

* ``refused``: the node's policy or the spec itself says no. Retrying is useless; somebody must change a setting.
* ``user``: the image or the code in it failed. The author of the DAG mends it.
* ``machinery``: ours or the engine's failure. The operator of the node mends it; retrying may help.

Errors are made once, at the I/O edge, with the original chained. Each carries what happened (``message``), to
which sandbox (``sandbox``) and what to do next (``hint``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

Family = Literal["refused", "user", "machinery"]


class AircellError(Exception):
    """Base of every error that Aircell raises."""

    family: ClassVar[Family] = "machinery"

    def __init__(self, message: str, *, hint: str = "", sandbox: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.sandbox = sandbox
        self.detail = detail
        """Evidence of more than a line, such as the tail of a container log."""

    def __str__(self) -> str:
        where = f"sandbox {self.sandbox}: " if self.sandbox else ""
        hint = f" {self.hint}" if self.hint else ""
        return f"{where}{self.message}{hint}"

    def to_wire(self) -> dict[str, str]:
        """A JSON object from which :func:`from_wire` makes the same error again."""
        return {
            "kind": type(self).__name__,
            "message": self.message,
            "hint": self.hint,
            "sandbox": self.sandbox,
            "detail": self.detail,
        }


class Refused(AircellError):
    """The request may not be carried out as it stands."""

    family = "refused"


class RefusedByPolicy(Refused):
    """The node's policy forbids something that the spec asks for."""


class UnsupportedSpec(Refused):
    """The chosen backend cannot enforce a field of the spec, so it makes nothing at all."""


class InvalidSpec(Refused):
    """The spec, a request or a configuration file is malformed."""


class UserError(AircellError):
    """The image, or the code in it, failed."""

    family = "user"


class ImageError(UserError):
    """The image cannot be used."""


class ImageNotFound(ImageError):
    """No such image in the registry, nor on the node when it must not be pulled."""


class ImageUnauthorized(ImageError):
    """The registry rejects the credentials, or wants some."""


class ImagePlatformMismatch(ImageError):
    """The image has no variant for this node's operating system and architecture."""


class BuildFailed(ImageError):
    """The image could not be made from what was asked for; ``detail`` has the end of the builder's output."""


class StartupFailed(UserError):
    """The sandbox was made, but what the image holds never became ready; ``detail`` has the tail of its log."""


class IncompatibleImage(UserError):
    """The image lacks what a runner needs, or has it in a version that cannot work."""


class Unavailable(AircellError):
    """Something that must answer does not; another try may succeed."""


class DaemonUnavailable(Unavailable):
    """aircelld does not answer on its socket."""


class EngineUnavailable(Unavailable):
    """The container engine does not answer, or not in time."""


class ImagePullFailed(Unavailable):
    """The registry or the transfer failed for a reason that may pass (limited pulls, no data, no space)."""


class RegistryFailed(ImagePullFailed):
    """The registry was not reached, broke off or answered 5xx; another try at once may succeed."""


class CredentialsUnavailable(Unavailable):
    """What hands out registry credentials on this node failed."""


class RightsUnknown(Unavailable):
    """The registry could not be asked whether these credentials may have an image that is on the node."""


class BuildUnavailable(Unavailable):
    """The image could not be made for a reason that may pass or that the node's operator mends."""


class EngineError(AircellError):
    """The engine answered with an error that no other class describes."""


class NotFound(AircellError):
    """No such sandbox, container or image."""


class SandboxLost(AircellError):
    """A sandbox that was running is gone, and nothing says why."""


def _tree(cls: type[AircellError]) -> dict[str, type[AircellError]]:
    found = {cls.__name__: cls}
    for child in cls.__subclasses__():
        found |= _tree(child)
    return found


def from_wire(data: Mapping[str, object]) -> AircellError:
    """The error that :meth:`AircellError.to_wire` described; an unknown kind becomes a plain AircellError."""
    cls = _tree(AircellError).get(str(data.get("kind")), AircellError)
    text = {key: str(data.get(key) or "") for key in ("hint", "sandbox", "detail")}
    return cls(str(data.get("message") or "unknown error"), **text)
