"""Builds the images that the demo and the tests run: ``python -m images.build [NAME ...]``.

Everything comes from the host's own package sources (apt, and uv's package index), never from a container registry,
and nothing of the host's settings (index, proxies, certificates) stays in an image. The results are OCI archives in a
cache outside the checkout, keyed by a hash of all that goes into them; concurrent callers build an image once.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import inspect
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import uv

from aircell.builders import Buildah, Recipe, Say
from aircell.errors import AircellError

HERE = Path(__file__).parent
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
OF_THE_HOST = ("etc/apt/sources.list*", "etc/hostname", "etc/resolv.conf", "var/log/*")
"""What mmdebstrap leaves of this host in a root file system."""


class ImageBuildError(Exception):
    """An image could not be built. The message names the command, the end of its output and the whole log."""


@dataclass(frozen=True)
class Image:
    """One image: a root file system from a distribution's packages, or a Containerfile on top of another image."""

    reference: str
    """What engines call it."""
    containerfile: str
    parent: str | None = None
    """Name of the image below; None for a root file system made from ``packages``."""
    packages: tuple[str, ...] = ()
    suite: str | None = None
    """Release of the distribution; None takes the host's."""
    commands: tuple[str, ...] = ()
    """Run in the root file system after its packages are installed."""
    requirements: str | None = None
    """Locked requirements, a file under ``requirements/``."""


IMAGES: Mapping[str, Image] = {
    "base": Image(
        "localhost/aircell/base:test",
        "Containerfile.base",
        packages=("python3", "python3-venv", "libstdc++6"),  # the last for wheels with C++ inside, such as numpy's
    ),
    "python-3.9": Image(
        "localhost/aircell/python:3.9",
        "Containerfile.base",
        packages=("python3",),
        suite="bullseye",  # the oldest Python that the agent supports
    ),
    "old-python": Image(
        "localhost/aircell/old-python:test",
        "Containerfile.base",
        packages=("pypy3",),
        suite="bullseye",  # its PyPy is the youngest Python below 3.9 that Debian still serves: 3.7
        commands=("ln -s pypy3 /usr/bin/python3",),
    ),
    "task": Image("localhost/aircell/task:3.3.2", "Containerfile.task", "base", requirements="task.txt"),
    "task-3.3.1": Image("localhost/aircell/task:3.3.1", "Containerfile.task", "base", requirements="task-3.3.1.txt"),
    "task-old": Image("localhost/aircell/task:3.1.8", "Containerfile.task", "base", requirements="task-old.txt"),
    "demo-a": Image("localhost/aircell/pandas:2.2.3", "Containerfile.demo", "task", requirements="demo-a.txt"),
    "demo-b": Image("localhost/aircell/pandas:3.1.1", "Containerfile.demo", "task", requirements="demo-b.txt"),
}


def cache_dir() -> Path:
    """Where archives, downloads and build logs are kept: ``$AIRCELL_CACHE``, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aircell"
    return Path(os.environ.get("AIRCELL_CACHE") or default)


def archive(name: str) -> Path:
    """Path of the OCI archive of the image called ``name`` (a key of IMAGES), built now if the cache lacks it.

    Raises ImageBuildError when a build step fails, KeyError for an unknown name.
    """
    path = cache_dir() / "images" / f"{name}-{_digest(name)}.tar"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):
        if not path.exists():
            _build(name, path)
    return path


def gzip_archive(name: str) -> Path:
    """The same with the compression that every Docker pulls: before 25 it reads no zstd. Raises what archive() does."""
    reference = IMAGES[name].reference
    option = "--compression-format=gzip"
    return _converted(
        name,
        archive(name),
        ".gzip.tar",
        lambda to, say: _builder().push(reference, f"oci-archive:{to}:{reference}", say, option),
    )


def docker_archive(name: str) -> Path:
    """The same as an archive that every Docker loads: before 25 it reads no OCI archive. Raises what archive() does."""
    # From the one with gzip: buildah 1.28 cannot save an image that it knows compressed with zstd alone.
    reference = IMAGES[name].reference
    return _converted(name, gzip_archive(name), ".docker.tar", lambda to, say: _builder().save(reference, to, say))


def _converted(name: str, source: Path, suffix: str, save: Callable[[Path, Say], None]) -> Path:
    """The image in another form, which ``save`` writes when the cache lacks it."""
    target = archive(name).with_suffix(suffix)
    with locked(target.with_suffix(".lock")):
        if not target.exists():
            partial = target.with_suffix(".partial")
            with _logged(target.with_suffix(".log")) as say:
                _builder().pull(source, say)
                save(partial, say)
            partial.rename(target)
    return target


@functools.cache
def _digest(name: str) -> str:
    """Hash of everything of ours that goes into an image, its parents included."""
    image = IMAGES[name]
    recipe = [inspect.getsource(each) for each in (_root_filesystem, _host_settings, _builder, Buildah)]
    parts = [*recipe, *OF_THE_HOST, repr(image), (HERE / image.containerfile).read_text(), _host_suite()]
    if image.requirements:
        parts.append((HERE / "requirements" / image.requirements).read_text())
    if image.parent:
        parts.append(_digest(image.parent))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the file's lock: one process at a time."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(name: str, target: Path) -> None:
    image = IMAGES[name]
    parent = f"oci-archive:{archive(image.parent)}" if image.parent else None
    _say(f"image {name}: building")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"aircell-{name}-") as folder:
        context, log = Path(folder), target.with_suffix(".log")
        if parent is None:
            _root_filesystem(image, context / "rootfs.tar", log)
        if image.requirements:
            shutil.copy(HERE / "requirements" / image.requirements, context / "requirements.txt")
            _host_settings(context)
        partial = target.with_suffix(".partial")
        _buildah(image, parent, context, partial, log)
        partial.rename(target)
    _say(f"image {name}: ready in {time.monotonic() - started:.0f} s ({target.stat().st_size >> 20} MiB)")


def _root_filesystem(image: Image, target: Path, log: Path) -> None:
    """A minimal root file system of the host's distribution, without documentation and without package sources."""
    command = ["mmdebstrap", "--variant=essential", f"--include={','.join(image.packages)}"]
    for path in ("doc", "man", "locale", "info"):
        command.append(f"--dpkgopt=path-exclude=/usr/share/{path}/*")
    command += [f'--customize-hook=chroot "$1" sh -c {shlex.quote(each)}' for each in image.commands]
    command.append(f'--customize-hook=cd "$1" && rm -rf {" ".join(OF_THE_HOST)}')
    suite = image.suite or _host_suite()
    sources = _host_sources()
    if image.suite:  # only the main archive of another release: its other suites have moved over time
        mirror = next(line.split()[1] for line in sources if line.split()[2] == _host_suite())
        sources = [f"deb {mirror} {suite} main"]
    _run([*command, suite, str(target), *sources], log)


def _host_sources() -> list[str]:
    """The package sources of this host's distribution, as one-line entries; other vendors' are left out."""
    template = "$(ORIGIN)|deb $(REPO_URI) $(CODENAME) $(COMPONENT)"
    command = ["apt-get", "indextargets", "--format", template, "Created-By: Packages"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    sources = [line.partition("|")[2] for line in listed if line.partition("|")[0] in ("Debian", "Ubuntu")]
    if not sources:
        raise ImageBuildError("apt knows no Debian or Ubuntu package source; run `apt-get update` and try again")
    return list(dict.fromkeys(sources))


def _host_suite() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip('"')
    raise ImageBuildError("/etc/os-release has no VERSION_CODENAME: images are built on Debian and Ubuntu only")


def _host_settings(context: Path) -> None:
    """Puts uv, and what it needs of the host to reach its index, into the build context (mounted, never copied)."""
    shutil.copy(uv.find_uv_bin(), context / "uv")
    settings = {k: v for k, v in os.environ.items() if k.startswith("UV_") or k.lower().endswith("_proxy")}
    settings |= {"UV_CACHE_DIR": "/mnt", "UV_LINK_MODE": "copy"}
    # Files of an image do not change: Python need not look whether they did.
    settings |= {"UV_COMPILE_BYTECODE": "1", "PYC_INVALIDATION_MODE": "UNCHECKED_HASH"}
    certificates = Path(os.environ.get("SSL_CERT_FILE", CERTIFICATES))
    if certificates.exists():
        shutil.copy(certificates, context / "ca.crt")
        settings["SSL_CERT_FILE"] = "/run/build/ca.crt"
    lines = [f"export {key}={shlex.quote(value)}\n" for key, value in settings.items()]
    (context / "host.env").write_text("".join(lines))


def _builder() -> Buildah:
    cache = cache_dir()
    downloads = cache / "uv"
    downloads.mkdir(parents=True, exist_ok=True)
    # Mounted at a folder that exists in every image, so that no trace is left.
    return Buildah(store=cache / "buildah", isolation="chroot", volumes=(f"{downloads}:/mnt",))


def _buildah(image: Image, parent: str | None, context: Path, target: Path, log: Path) -> None:
    arguments = {"PARENT": parent} if parent else {}
    recipe = Recipe(image.reference, HERE / image.containerfile, context, arguments)
    with _logged(log) as say:
        _builder().build(recipe, say)
        _builder().save_oci(image.reference, target, say)


@contextlib.contextmanager
def _logged(log: Path) -> Iterator[Say]:
    """What a builder says goes to the log; where that is, to its error."""
    with log.open("a") as output:
        try:
            yield lambda line: print(line, file=output, flush=True)
        except AircellError as error:
            raise ImageBuildError(f"{error.message}\n{error.detail}\nThe whole log: {log}") from error


def _run(command: Sequence[str], log: Path) -> None:
    with log.open("a") as output:
        output.write(f"$ {shlex.join(command)}\n")
        output.flush()
        result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False)
    if result.returncode != 0:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise ImageBuildError(f"{command[0]} failed with code {result.returncode}:\n{tail}\nThe whole log: {log}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(names: Sequence[str]) -> None:
    """Builds the named images, or all, and prints the path of each archive."""
    for name in names or list(IMAGES):
        print(f"{IMAGES[name].reference}\t{archive(name)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
