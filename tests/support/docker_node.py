"""A node of its own whose engine is a dockerd: a real aircelld, and no containerd of ours."""

from __future__ import annotations

import secrets
import shutil
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aircell.client import Sandbox
from tests.support.dockerd import Dockerd
from tests.support.images import reference
from tests.support.jobs import request
from tests.support.node import Node, processes, run


class DockerNode(Node):
    """See :class:`~tests.support.node.Node`. The Docker engine outlives a restart of aircelld."""

    def __init__(self) -> None:
        super().__init__()
        address = f"10.{secrets.randbelow(100) + 100}.{secrets.randbelow(256)}.1/24"
        root = Path(tempfile.mkdtemp(prefix="ad", dir="/tmp"))
        self.dockerd = Dockerd(root, bridge=root.name[:15], address=address)
        self.config["managed_containerd"] = False
        del self.config["containerd"]
        self.config["backends"] = {"docker": {"host": self.dockerd.host, "cgroup_parent": f"/{self.tag}"}}
        self._started = False

    def start(self, *, on_first_use: bool = False) -> None:
        if not self._started:
            self.dockerd.start()
            self._started = True
        super().start(on_first_use=on_first_use)

    def kill(self) -> None:
        """SIGKILL; dockerd stays."""
        self._end(signal.SIGKILL)

    def load(self, name: str) -> str:
        if name not in self._loaded:
            self.dockerd.load(name)
            self._loaded.add(name)
        return reference(name)

    @property
    def gateway(self) -> str:
        return self.dockerd.address

    def launch(self, *argv: str, **spec: Any) -> Sandbox:
        return self.client.launch({**request(*argv, **spec), "backend": "docker"})

    def traces(self) -> dict[str, list[str]]:
        found = {
            "containers": self.dockerd.containers(),
            "mounts": [*self.mounts(), *self._docker_mounts()],
            "cgroups": [str(path) for path in self._groups("*/")],
            "folders": [path.name for path in (self.state / "sandboxes").iterdir()],
            "interfaces": run("ip", "-o", "link", "show", "master", self.dockerd.bridge).splitlines(),
            "shims": [" ".join(command) for _, command in processes() if self._is_shim(command)],
        }
        return {kind: traces for kind, traces in found.items() if traces}

    def engine_commands(self) -> list[str]:
        return [f"docker --host {self.dockerd.host} ps --all"]

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.dockerd.stop()
            shutil.rmtree(self.dockerd.root)

    def _docker_mounts(self) -> list[str]:
        """Root file systems and namespaces of containers. dockerd itself mounts its data-root upon itself."""
        points = [Path(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        ours = [point for point in points if point.is_relative_to(self.dockerd.root)]
        return [str(point) for point in ours if point != self.dockerd.root / "root"]

    def _is_shim(self, command: Sequence[str]) -> bool:
        return Path(command[0]).name.startswith("containerd-shim") and any(
            str(self.dockerd.root) in word for word in command
        )
