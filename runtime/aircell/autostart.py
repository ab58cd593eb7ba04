"""Starting aircelld when nobody listens: once, however many workers ask at the same moment."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from socket import socket

from aircell.errors import DaemonUnavailable

CONFIG_FILE = "/etc/aircell/aircelld.yaml"
"""aircelld's configuration, when nothing else is said."""
IDLE_EXIT = "600"
"""Seconds after which an aircelld that nobody started by hand ends."""
_POLL = 0.02
_PASSED_ON = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_STATE_HOME")
_PASSED_ON_PREFIXES = ("AIRCELL_", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def command(socket_path: str) -> tuple[str, ...]:
    """Starts an aircelld that needs no configuration: with a containerd of its own, and it ends when it is idle.

    A node that has a configuration file says there what engine it uses.
    """
    managed = () if Path(CONFIG_FILE).exists() else ("--managed-containerd",)
    # By the interpreter, because a worker's PATH need not have the folder of its own console scripts.
    return (sys.executable, "-m", "aircell.daemon.main", *managed, "--socket", socket_path, "--idle-exit", IDLE_EXIT)


def connect_or_start(connect: Callable[[], socket], socket_path: str, argv: Sequence[str], timeout: float) -> socket:
    """A connection from ``connect``, which raises DaemonUnavailable as long as nobody listens.

    Of all the processes that come here at once, the holder of a lock file beside the socket starts ``argv``; the
    others wait for the lock and find it running. Raises DaemonUnavailable when that takes over ``timeout`` seconds
    or the new process ends, with the end of its log (``aircelld.log`` beside the socket).
    """
    folder = Path(socket_path).parent
    deadline = time.monotonic() + timeout
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "autostart.lock", deadline):
            try:
                return connect()
            except DaemonUnavailable:
                return _start(connect, argv, folder / "aircelld.log", deadline)
    except OSError as error:
        raise DaemonUnavailable(
            f"aircelld does not run and cannot be started by this user: {error}.",
            hint=f"Start it as root with `aircelld`, or set a socket path in a folder that user {os.getuid()} owns.",
        ) from error


@contextlib.contextmanager
def _locked(path: Path, deadline: float) -> Iterator[None]:
    with open(path, "w", opener=_private) as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DaemonUnavailable(
                        "Another process has been starting aircelld for too long.",
                        hint=f"Look at aircelld.log in {path.parent}.",
                    ) from None
                time.sleep(_POLL)
        yield


def _private(path: str, flags: int) -> int:
    """Whoever can open a file can lock it, even for reading only."""
    return os.open(path, flags, 0o600)


def _start(connect: Callable[[], socket], argv: Sequence[str], log: Path, deadline: float) -> socket:
    with log.open("ab") as output:
        begin = output.tell()
        daemon = subprocess.Popen(  # noqa: S603 - argv is the operator's setting
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
            env=daemon_environment(os.environ.items()),
        )
    while True:
        try:
            return connect()
        except DaemonUnavailable as error:
            ended = daemon.poll()
            if ended is not None or time.monotonic() > deadline:
                what = "did not listen in time" if ended is None else f"ended at once with code {ended}"
                raise DaemonUnavailable(
                    f"aircelld was started as `{' '.join(argv)}` and {what}.",
                    hint=f"Its log is {log}.",
                    detail=log.read_bytes()[begin:][-4096:].decode(errors="replace"),
                ) from error
            time.sleep(_POLL)


def daemon_environment(items: Iterable[tuple[str, str]]) -> dict[str, str]:
    """What aircelld may inherit: nothing of a worker's settings and secrets."""
    return {name: value for name, value in items if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)}
