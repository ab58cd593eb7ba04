"""A dockerd of the tests' own: its own containerd, folders and bridge, and nothing of it stays."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from images.build import docker_archive
from tests.support.images import reference

START_SECONDS = 30.0


class Dockerd:
    """Runs below ``root``, a folder with a short name."""

    def __init__(self, root: Path, *, bridge: str, address: str, options: Sequence[str] = ()) -> None:
        """``bridge`` is made with ``address``, such as ``10.1.2.1/24``, and removed in the end."""
        self.root = root
        self.socket = str(root / "docker.sock")
        self.log = root / "dockerd.log"
        self.bridge = bridge
        self._address = address
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._api = httpx.Client(transport=httpx.HTTPTransport(uds=self.socket), base_url="http://docker", timeout=60)

    @property
    def host(self) -> str:
        return f"unix://{self.socket}"

    @property
    def address(self) -> str:
        """This machine's on the bridge."""
        return self._address.partition("/")[0]

    def start(self) -> None:
        """Returns once it answers."""
        run("ip", "link", "delete", self.bridge, check=False)  # a run that was killed has left it
        run("ip", "link", "add", self.bridge, "type", "bridge")
        run("ip", "address", "add", self._address, "dev", self.bridge)
        run("ip", "link", "set", self.bridge, "up")
        self.start_process()

    def start_process(self) -> None:
        """The daemon alone, as after its crash."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *self.command()], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, f"dockerd ended:\n{self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"dockerd does not answer:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.05)

    def command(self) -> list[str]:
        """What runs."""
        argv = ["dockerd", "--host", self.host, "--live-restore"]
        argv += ["--data-root", f"{self.root}/root", "--exec-root", f"{self.root}/exec"]
        argv += ["--pidfile", f"{self.root}/dockerd.pid"]
        argv += ["--bridge", self.bridge, "--iptables=false", "--ip6tables=false", *self._options]
        argv += ["--max-download-attempts", "1"]  # of each layer; five, with pauses, would take a minute to fail
        return argv

    def kill(self) -> None:
        """As its crash. Its containerd goes with it, which the next dockerd would take for one that still runs."""
        assert self._process is not None
        containerd = Path("/proc") / (self.root / "exec/containerd/containerd.pid").read_text()
        self._process.kill()
        self._process.wait()
        deadline = time.monotonic() + START_SECONDS
        while containerd.exists():
            assert time.monotonic() < deadline, "containerd does not end with dockerd"
            time.sleep(0.02)

    def stop(self) -> None:
        """Ends it, and removes the bridge."""
        self.end()
        run("ip", "link", "delete", self.bridge)

    def end(self) -> None:
        """Removes what containers there are, too: this dockerd would leave them running."""
        if self._process is not None and self._process.poll() is None:
            for container in self.containers():
                self._api.delete(f"/containers/{container}", params={"force": True}).raise_for_status()
            self._process.terminate()
            self._process.wait(60)

    def load(self, image: str) -> None:
        """Loads one of ``images.build.IMAGES``."""
        with docker_archive(image).open("rb") as file:
            answer = self._api.post("/images/load", content=file, timeout=300)
        assert answer.is_success, answer.text
        assert reference(image) in answer.text

    def containers(self) -> list[str]:
        """The id of every container, whatever its state."""
        answer = self._api.get("/containers/json", params={"all": True}).raise_for_status()
        return [container["Id"] for container in answer.json()]

    def info(self) -> dict[str, Any]:
        """What ``docker info`` is made of."""
        answer: dict[str, Any] = self._api.get("/info").raise_for_status().json()
        return answer

    def inspect(self, container: str) -> dict[str, Any]:
        """What ``docker inspect`` prints."""
        answer: dict[str, Any] = self._api.get(f"/containers/{container}/json").raise_for_status().json()
        return answer

    def pull(self, name: str) -> None:
        """``docker pull``."""
        answer = self._api.post("/images/create", params={"fromImage": name})
        assert "error" not in answer.text, answer.text

    def tag(self, image: str, name: str) -> None:
        """``docker tag``."""
        repository, _, tag = name.rpartition(":")
        self._api.post(f"/images/{image}/tag", params={"repo": repository, "tag": tag}).raise_for_status()

    def untag(self, name: str) -> None:
        """``docker rmi``."""
        self._api.delete(f"/images/{name}").raise_for_status()

    def _answers(self) -> bool:
        try:
            return self._api.get("/_ping").is_success
        except httpx.TransportError:
            return False


def run(*argv: str, check: bool = True) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"{argv} failed: {done.stderr}"
    return done.stdout
