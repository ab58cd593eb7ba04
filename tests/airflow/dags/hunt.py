"""Where a secret could be: environment, memory, files, other processes, sockets, the network. Standard library only."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

SECRET = re.compile(rb"can4ry-[a-z]+-[0-9a-zA-Z]{16}|eyJ[\w-]{16,}\.eyJ[\w-]{16,}\.[\w-]{16,}")
"""The test's planted secrets, and any JSON Web Token."""
PLACES = ("/tmp", "/run", "/etc", "/home", "/root", "/var", "/mnt", "/srv", "/opt")
CODE = re.compile(r"/(site-packages|\.cache|dist-packages|lib/python[\d.]+|containerd|sandboxes|\.venv)(/|$)")
LARGEST = 2**18
FILES = 10_000


def everything(addresses: list[str]) -> dict[str, list[str]]:
    """What was found, by where. ``addresses`` are HOST:PORT to try."""
    processes = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    commands = [read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace") for pid in processes]
    return {
        "environment": secrets("\n".join(f"{name}={value}" for name, value in os.environ.items()).encode()),
        "objects": heap(),
        "own memory": memory(os.getpid()),
        "memory of others": [found for pid in near(processes) for found in memory(pid)],
        "files": files(),
        "of processes": [found for pid in processes for found in about(pid)],
        "processes": [command for command in commands if command],
        "unix sockets": unix_sockets(),
        "descriptors": descriptors(),
        "reached": [address for address in addresses if reaches(address)],
        "network interfaces": [name for _, name in socket.if_nameindex()],
    }


def near(processes: list[int]) -> list[int]:
    """The parent, process 1, and a few more: on a whole host there are many, in a sandbox these are all."""
    return sorted({os.getppid(), *sorted(processes)[:4]} - {0, os.getpid()})


def secrets(data: bytes) -> list[str]:
    return sorted({found.decode() for found in SECRET.findall(data)})


def heap() -> list[str]:
    """In every string that the garbage collector leads to."""
    found: set[str] = set()
    for holder in gc.get_objects():
        with contextlib.suppress(Exception):
            for value in gc.get_referents(holder):
                if isinstance(value, str):
                    found.update(secrets(value.encode(errors="replace")))
                elif isinstance(value, bytes):
                    found.update(secrets(value))
    return sorted(found)


def memory(pid: int) -> list[str]:
    """In every readable page of a process."""
    found: set[str] = set()
    here = Path(f"/proc/{pid}")
    with contextlib.suppress(OSError), (here / "maps").open() as maps, (here / "mem").open("rb") as pages:
        for line in maps:
            span, rights = line.split()[:2]
            begin, end = (int(part, 16) for part in span.split("-"))
            if rights.startswith("rw") and end - begin < 2**30:
                with contextlib.suppress(OSError, ValueError, OverflowError):
                    pages.seek(begin)
                    found.update(secrets(pages.read(end - begin)))
    return sorted(found)


def about(pid: int) -> list[str]:
    return [found for name in ("environ", "cmdline") for found in secrets(read(f"/proc/{pid}/{name}"))]


def read(path: str) -> bytes:
    with contextlib.suppress(OSError):
        return Path(path).read_bytes()
    return b""


def walk() -> Iterator[tuple[Path, os.stat_result]]:
    """Newest folders first: what is worth finding is in use."""
    for place in PLACES:
        for folder, inner, names in os.walk(place):
            inner[:] = sorted((name for name in inner if not CODE.search(f"{folder}/{name}")), key=age_in(folder))
            for name in names:
                with contextlib.suppress(OSError):
                    path = Path(folder, name)
                    yield path, path.lstat()


def age_in(folder: str) -> Callable[[str], float]:
    def age(name: str) -> float:
        with contextlib.suppress(OSError):
            return -Path(folder, name).lstat().st_mtime
        return 0.0

    return age


def files() -> list[str]:
    """In the name or the content of every small file."""
    found: set[str] = set()
    for count, (path, status) in enumerate(walk()):
        found.update(secrets(str(path).encode()))
        if path.name == "airflow.cfg":
            found.add(str(path))
        if stat.S_ISREG(status.st_mode) and status.st_size < LARGEST:
            found.update(secrets(read(str(path))))
        if count > FILES:
            break
    return sorted(found)


def unix_sockets() -> list[str]:
    """Those that take a connection."""
    paths = {path.decode() for line in read("/proc/net/unix").splitlines()[1:] for path in line.split()[7:]}
    paths.update(str(path) for path, status in walk() if stat.S_ISSOCK(status.st_mode))
    return sorted(path for path in paths if connects(socket.AF_UNIX, path.replace("@", "\0", 1)))


def descriptors() -> list[str]:
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(f"{path.name} {str(path.readlink()).split(':')[0]}")
    return sorted(found)


def reaches(address: str) -> bool:
    host, _, port = address.rpartition(":")
    return connects(socket.AF_INET, (host, int(port)))


def connects(family: int, address: object) -> bool:
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(2)
        sock.connect(address)
        return True
    return False
