"""Building images with what is installed for it: buildah, or Docker's command line with BuildKit.

Both read Containerfiles, have ``RUN --mount``, and keep what a step mounts out of the image and of its history.
"""

from __future__ import annotations

import abc
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from aircell import build_errors
from aircell.errors import BuildUnavailable, InvalidSpec

Say = Callable[[str], None]
"""Gets each line that the builder prints."""
_KEPT = 200


@dataclass(frozen=True)
class Recipe:
    """What to build."""

    reference: str
    """What the image will be called."""
    containerfile: Path
    context: Path
    arguments: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Path] = field(default_factory=dict)
    """By their id, for steps with ``--mount=type=secret,id=...``."""


class Builder(abc.ABC):
    """One way to build."""

    name: ClassVar[str]

    @abc.abstractmethod
    def build(self, recipe: Recipe, say: Say) -> None:
        """Builds, into a store of the builder's own. Raises BuildFailed or BuildUnavailable."""

    @abc.abstractmethod
    def save(self, reference: str, archive: Path, say: Say) -> None:
        """Writes an image from that store as an archive that every engine loads. Raises the same."""


@dataclass(frozen=True)
class Buildah(Builder):
    """Needs no daemon. Runs the steps as its own configuration says, unless ``isolation`` says otherwise."""

    name: ClassVar[str] = "buildah"

    store: Path | None = None
    """A folder for images and what is mounted of them; None is buildah's own."""
    isolation: str | None = None
    volumes: Sequence[str] = ()
    """``SOURCE:TARGET`` that every step sees."""

    def build(self, recipe: Recipe, say: Say) -> None:
        command = [*self._command(), "build", "--network=host", "--layers=false", "--format=oci"]
        command += [f"--isolation={self.isolation}"] if self.isolation else []
        command += [f"--volume={each}" for each in self.volumes]
        _run([*command, *_options(recipe)], f"the image {recipe.reference}", say)

    def save(self, reference: str, archive: Path, say: Say) -> None:
        self.push(reference, f"docker-archive:{archive}:{reference}", say)

    def save_oci(self, reference: str, archive: Path, say: Say) -> None:
        """A smaller archive, which containerd loads and :meth:`pull` reads again. Raises the same."""
        self.push(reference, f"oci-archive:{archive}:{reference}", say, "--format=oci", "--compression-format=zstd")

    def push(self, reference: str, target: str, say: Say, *options: str) -> None:
        _run([*self._command(), "push", *options, reference, target], f"the archive of {reference}", say)

    def pull(self, archive: Path, say: Say) -> None:
        """Takes up an image from an archive of :meth:`save_oci`, under the name that it has there."""
        _run([*self._command(), "pull", f"oci-archive:{archive}"], f"the image in {archive}", say)

    def _command(self) -> list[str]:
        if self.store is None:
            return ["buildah"]
        return ["buildah", "--root", str(self.store), "--runroot", f"{self.store}-run"]


@dataclass(frozen=True)
class DockerCli(Builder):
    """The command line of Docker 20.10 or later, at whatever engine it is configured for."""

    name: ClassVar[str] = "docker"

    def build(self, recipe: Recipe, say: Say) -> None:
        command = ["env", "DOCKER_BUILDKIT=1", "docker", "build", "--network=host", "--progress=plain"]
        _run([*command, *_options(recipe)], f"the image {recipe.reference}", say)

    def save(self, reference: str, archive: Path, say: Say) -> None:
        _run(["docker", "save", f"--output={archive}", reference], f"the archive of {reference}", say)


_BUILDERS: Mapping[str, Callable[[], Builder]] = {"buildah": Buildah, "docker": DockerCli}
Name = Literal["buildah", "docker"]


def find(name: str | None = None) -> Builder:
    """The builder of that name, or the first that is installed. Raises BuildUnavailable, and InvalidSpec."""
    if name is not None and name not in _BUILDERS:
        raise InvalidSpec(f"there is no image builder {name!r}.", hint=f"Choose one of {', '.join(_BUILDERS)}.")
    for each in [name] if name else _BUILDERS:
        if shutil.which(each):
            return _BUILDERS[each]()
    raise BuildUnavailable(
        f"{name or 'no image builder'} is {'not ' if name else ''}installed here.",
        hint="Install buildah (Debian: apt-get install buildah), or Docker with its command line.",
    )


def _options(recipe: Recipe) -> list[str]:
    """What both understand."""
    options = [f"--tag={recipe.reference}", f"--file={recipe.containerfile}"]
    options += [f"--build-arg={name}={value}" for name, value in recipe.arguments.items()]
    options += [f"--secret=id={name},src={path}" for name, path in recipe.secrets.items()]
    return [*options, str(recipe.context)]


def _run(command: Sequence[str], what: str, say: Say) -> None:
    said: deque[str] = deque(maxlen=_KEPT)
    with subprocess.Popen(  # noqa: S603 - the command is ours, and no shell reads it
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        for line in process.stdout:
            said.append(line.rstrip())
            say(said[-1])
    if process.returncode != 0:
        raise build_errors.translate(what, said)
