"""What a crash left behind: a containerd that outlived its aircelld, and what one that was killed in the middle of a
call does not know of when it is back.

A container's record is made before its shim, and removed after it; a shim without a record is one whose making was cut
short. containerd never looks at it again. The same goes for network namespaces and addresses. All of this belongs to a
containerd that is ours alone, so that nobody else can be meant.

Sources: ``runtime/v2`` of containerd (bundles, the shim's command line and its ``delete``); cni host-local's files.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from aircell.daemon.concurrency import readable
from aircell.deadlines import within

log = logging.getLogger(__name__)

_BUNDLES = "io.containerd.runtime.v2.task"


@dataclass(frozen=True)
class Shim:
    """A running shim."""

    pid: int
    id: str
    """Of the container, or of the pod sandbox, that it was started for."""
    argv: tuple[str, ...]


@dataclass(frozen=True)
class Network:
    """Namespaces and addresses that there were before containerd started; it makes them before a container's record,
    so that of newer ones nobody can tell whether they are lost."""

    namespaces: tuple[Path, ...]
    """Mount points."""
    leases: tuple[Path, ...]
    """A file for each address, whose first line is the id of the pod sandbox that has it."""


async def end_daemons(config: Path, patience: float) -> None:
    """Ends every containerd with that configuration file; one that takes longer than ``patience`` seconds is killed.

    containerd gives the thread that makes a user namespace another user id for a moment (its
    ``pkg/sys/unshare_linux.go``). When that is the main thread, the kernel forgets that it is to end with its parent
    (prctl(2), PR_SET_PDEATHSIG).
    """
    for folder in _processes():
        if _option(_command_line(folder), "--config") == str(config):
            with contextlib.suppress(ProcessLookupError):  # it has ended
                await _end(int(folder.name), patience)


async def _end(pid: int, patience: float) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        log.warning("ending the containerd with pid %d, which outlived its aircelld", pid)
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        try:
            await within(patience, readable(pidfd))
        except asyncio.TimeoutError:
            log.error("the containerd with pid %d did not end in %g s; killing it", pid, patience)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            await readable(pidfd)
    finally:
        os.close(pidfd)


def find_network(state: Path, leases: Path) -> Network:
    """Looks below containerd's ``state`` folder, and into the folder of a ``leases`` folder for each network."""
    addresses = (path for path in leases.glob("*/*") if path.name[0].isdigit() or ":" in path.name)
    return Network(namespaces=tuple(state.glob("*/netns/*")), leases=tuple(addresses))


async def remove_network(found: Network, known: Set[str], state: Path) -> None:
    """Removes what belongs to no container of ``known``, the ids that containerd has now."""
    used = "".join(map(_text, state.glob(f"{_BUNDLES}/*/*/config.json")))
    for namespace in found.namespaces:
        if namespace.name not in used and namespace.exists():
            log.warning("removing the network namespace %s, which no container uses", namespace.name)
            await _run(Path("/"), "umount", "--lazy", str(namespace))
            namespace.unlink(missing_ok=True)
    for lease in found.leases:
        owner = _text(lease).split()[:1]
        if owner and owner[0] not in known:
            log.warning("giving back the address %s, which no container has", lease.name)
            lease.unlink(missing_ok=True)


def _text(path: Path) -> str:
    """Empty when there is no such file any more: containerd removes things, too."""
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def find_shims(socket: Path) -> list[Shim]:
    """Every shim of the containerd with that socket."""
    found = []
    for folder in _processes():
        argv = _command_line(folder)
        if argv and Path(argv[0]).name.startswith("containerd-shim-") and _option(argv, "-address") == str(socket):
            found.append(Shim(int(folder.name), _option(argv, "-id"), argv))
    return found


def _processes() -> list[Path]:
    """Folders in /proc, without those of other PID namespaces: any process in a container can call itself a shim."""
    ours = _namespace(Path("/proc/self"))
    return [path for path in Path("/proc").iterdir() if path.name.isdecimal() and _namespace(path) == ours]


def _namespace(folder: Path) -> str:
    try:
        return str((folder / "ns/pid").readlink())
    except OSError:  # it has ended
        return ""


def _command_line(folder: Path) -> tuple[str, ...]:
    try:
        return tuple((folder / "cmdline").read_text(errors="replace").split("\0"))
    except OSError:  # it has ended
        return ()


def _option(argv: tuple[str, ...], name: str) -> str:
    return argv[argv.index(name) + 1] if name in argv[:-1] else ""


async def remove_shim(shim: Shim, state: Path) -> None:
    """As containerd does with a shim that died: ``delete`` ends what runs in the container and unmounts its root."""
    log.warning("removing the shim of container %s, which containerd has lost", shim.id)
    try:
        os.kill(shim.pid, signal.SIGKILL)
    except ProcessLookupError:
        log.debug("the shim of container %s has ended", shim.id)
    for bundle in state.glob(f"{_BUNDLES}/*/{shim.id}"):
        await _run(bundle, *filter(None, shim.argv), "-bundle", str(bundle), "delete")
        if not (bundle / "rootfs").is_mount():
            shutil.rmtree(bundle, ignore_errors=True)  # containerd may be removing it, too


async def _run(folder: Path, *argv: str) -> None:
    """Runs a command there. Its failure is for the log: the next search finds again what is still there."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, cwd=folder, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
    except OSError as error:
        log.warning("`%s` cannot run: %s", " ".join(argv), error)
        return
    _, errors = await process.communicate()
    if process.returncode:
        log.warning("`%s` failed: %s", " ".join(argv), errors.decode(errors="replace").strip())
