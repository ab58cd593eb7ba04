"""The engines that the contract holds on: real ones, started for the tests and gone afterwards."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from aircell.backends.base import Backend
from aircell.backends.cri.backend import CriBackend
from aircell.backends.docker.backend import DockerBackend
from aircell.daemon.containerd import ManagedContainerd
from aircell.daemon.containerd_config import ContainerdConfig
from aircell.daemon.outside import parse_mounts
from images.build import cache_dir
from tests.contract.footprint import Footprint, descriptors, footprint
from tests.support.certificates import Authority
from tests.support.dockerd import Dockerd
from tests.support.images import archive


class Running(Protocol):
    """What the contract's tests need of an engine that runs."""

    @property
    def runtime(self) -> str:
        """A low-level runtime by the engine's own name for it."""

    @property
    def gateway(self) -> str:
        """The node's address on the network that ``network: pod`` means; sandboxes are in its /24."""

    def new_backend(self) -> Backend: ...

    def allow_plain_http(self, host: str) -> None:
        """Tells the engine that a registry has no certificate."""

    def footprint(self, cgroup_parent: str) -> Footprint:
        """All that there is of the engine and, below that control group, of its sandboxes."""

    def descriptors(self) -> int:
        """How many are open in the engine's processes and in this one."""


class Engine(Protocol):
    """A real engine that the tests start. Another backend joins by one more of these in ENGINES."""

    @property
    def name(self) -> str: ...

    def running(self) -> contextlib.AbstractAsyncContextManager[Running]:
        """The engine, with the image ``base``."""


@dataclass(frozen=True)
class RunningContainerd:
    kind: Containerd
    managed: ManagedContainerd
    folder: Path
    gateway: str = "10.213.77.1"

    @property
    def runtime(self) -> str:
        return self.kind.runtime

    def new_backend(self, **settings: object) -> Backend:
        return CriBackend({"socket": str(self.managed.socket), **settings})

    def allow_plain_http(self, host: str) -> None:
        folder = Path(self.managed.config.registry_hosts) / host
        folder.mkdir(parents=True)
        (folder / "hosts.toml").write_text(f'server = "http://{host}"\n')

    def trust(self, host: str, authority: Path) -> None:
        """Tells the engine who vouches for a registry's certificate."""
        folder = Path(self.managed.config.registry_hosts) / host
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts.toml").write_text(f'[host."https://{host}"]\nca = "{authority}"\n')

    def footprint(self, cgroup_parent: str) -> Footprint:
        return footprint(self.folder, self.managed.config.bridge, cgroup_parent)

    def descriptors(self) -> int:
        return descriptors(self.folder)


@dataclass(frozen=True)
class Containerd:
    """A containerd and a low-level runtime under it."""

    name: str
    major: str
    binary: str
    runtime: str

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[RunningContainerd]:
        if self.runtime == "crun":
            move_all_controllers_to_v1()
        with short_folder() as folder:
            config = ContainerdConfig(
                root=str(folder / "root"),
                state=str(folder / "state"),
                registry_hosts=str(folder / "registries"),
                binary=self.binary,
                bridge="accontract0",
                subnet="10.213.77.0/24",
            )
            managed = ManagedContainerd(config)
            await managed.start()
            try:
                await managed.load_image(archive("base"))
                yield RunningContainerd(self, managed, folder)
            finally:
                await managed.stop()


@dataclass(frozen=True)
class RunningDocker:
    dockerd: Dockerd
    authority: Authority
    """Whom it believes on ``tcp``."""
    tcp: str
    runtime: str = "runc"
    gateway: str = "10.213.79.1"

    @property
    def folder(self) -> Path:
        return self.dockerd.root

    def new_backend(self, **settings: object) -> Backend:
        return DockerBackend({"host": self.dockerd.host, **settings})

    def allow_plain_http(self, host: str) -> None:
        """Nothing to do: Docker tries plain HTTP on the loopback interface by itself."""

    def trust(self, host: str, authority: Path) -> None:
        """Nothing to do: there Docker believes any certificate."""

    def footprint(self, cgroup_parent: str) -> Footprint:
        names = self.dockerd.root / "exec/netns"  # cleared once a minute; the namespaces themselves are mounts
        return footprint(self.dockerd.root, self.dockerd.bridge, cgroup_parent, but=names)

    def descriptors(self) -> int:
        return descriptors(self.dockerd.root)


@dataclass(frozen=True)
class Docker:
    """The distribution's dockerd."""

    name: str

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[RunningDocker]:
        with short_folder() as folder:
            authority = Authority()
            server = authority.for_server(folder / "tls")
            tcp = f"tcp://127.0.0.1:{free_port()}"
            options = ["--host", tcp, "--tlsverify", f"--tlscacert={server}/ca.pem"]
            options += [f"--tlscert={server}/cert.pem", f"--tlskey={server}/key.pem"]
            dockerd = Dockerd(folder, bridge="accontract1", address="10.213.79.1/24", options=options)
            try:
                dockerd.start()
                dockerd.load("base")
                yield RunningDocker(dockerd, authority, tcp)
            finally:
                dockerd.stop()


CONTAINERDS = (
    Containerd("containerd-1.6-runc", "1.6.", "containerd", "runc"),
    Containerd("containerd-1.6-crun", "1.6.", "containerd", "crun"),
    Containerd("containerd-2.3-runc", "2.3.", str(cache_dir() / "bin" / "containerd"), "runc"),
)
DOCKERS = (Docker("docker-20.10-runc"),)
ENGINES: Sequence[Engine] = (*CONTAINERDS, *DOCKERS)
YOUKI = Containerd("containerd-2.3-youki", "2.3.", str(cache_dir() / "bin" / "containerd"), "youki")
"""Where it is installed, see docs/backends.md."""


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder with a short name, for sockets, and in memory: engines write much, and wait for the disk each time."""
    path = Path(tempfile.mkdtemp(prefix="ac"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=711", "aircell", str(path)], check=True)
    try:
        yield path
    finally:
        mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        ours = [each for each in mounted if Path(each).is_relative_to(path)]
        subprocess.run(["umount", *sorted(ours, reverse=True)], check=True)
        path.rmdir()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def move_all_controllers_to_v1() -> None:
    """crun refuses a hybrid set-up of control groups in which v2 has any controller; systemd leaves it none either.

    One that has moved in another mount namespace only has to be mounted here.
    """
    root = Path("/sys/fs/cgroup")
    if not (root / "unified" / "cgroup.controllers").exists():
        return
    moving = set((root / "unified" / "cgroup.controllers").read_text().split())
    rows = [line.split() for line in Path("/proc/cgroups").read_text().splitlines()[1:]]  # cgroups(7)
    mounted = ",".join(parse_mounts(Path("/proc/self/mountinfo").read_text())).split(",")
    moving |= {name for name, hierarchy, *_ in rows if hierarchy != "0" and name not in mounted}
    for name in sorted(moving):
        (root / name).mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "cgroup", "-o", name, "cgroup", str(root / name)], check=True)
