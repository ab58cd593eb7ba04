"""The floor under a cold start: what aircelld does, done by hand with nothing of aircelld around it.

Both floors make the folder, play the gate to the same agent, and hand the same job over. They differ in who makes the
container: the engine, asked by bare gRPC calls, or runc alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

import aircell.agent
from aircell import protocol
from aircell.backends.base import LABEL_SANDBOX, SandboxPlan
from aircell.backends.cri import cgroups, engine, translate
from aircell.backends.cri.config import CriConfig
from aircell.spec import RUN_DIR, SCRATCH_DIR, LaunchRequest, Mount
from aircell_cri.v1 import api_pb2 as cri
from aircell_cri.v1 import api_pb2_grpc
from tests.support.agent import Worker
from tests.support.node import Node, run


class Folder:
    """A sandbox's folder and its gate."""

    def __init__(self, path: Path, runner: str) -> None:
        self.path, self.run, self.scratch = path, path / "run", path / "scratch"
        path.mkdir(mode=0o755)
        self.run.mkdir()
        self.scratch.mkdir()
        self.scratch.chmod(0o1777)
        shutil.copy(aircell.agent.__file__, self.run / "agent.py")
        (self.run / "agent.json").write_text('{"preload": []}')
        (self.run / "runner.py").write_text(runner)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.run / "gate.sock"))
        (self.run / "gate.sock").chmod(0o666)
        self._listener.listen(1)
        self._listener.settimeout(60)

    @property
    def mounts(self) -> list[Mount]:
        """As aircelld has them."""
        run_dir = Mount(source=str(self.run), target=RUN_DIR)
        return [run_dir, Mount(source=str(self.scratch), target=SCRATCH_DIR, read_only=False)]

    def first_line(self) -> int:
        """Waits for the agent and hands it its job: when that began, in monotonic nanoseconds."""
        with self._listener:
            gate, _ = self._listener.accept()
        with gate:
            gate.settimeout(60)
            reader = protocol.FrameReader()
            for _ in ("connected", "ready"):
                protocol.receive(gate, reader)
            worker = Worker()
            message = {"type": "job", "kind": "runner", "argv": [], "args": {}, "env": {}, "stop_grace": 0}
            protocol.send(gate, message, [end.fileno() for end in worker.theirs])
            for end in worker.theirs:
                end.close()
            said = int(worker.output())
            worker.exit()
            return said


class RawCri:
    """The engine, by gRPC."""

    def __init__(self, node: Node, wanted: dict[str, Any], root: Path) -> None:
        self._request = LaunchRequest.model_validate(wanted)
        self._root = root
        self._socket = node.containerd_socket
        channel = grpc.insecure_channel(f"unix://{node.containerd_socket}")
        self._runtime = api_pb2_grpc.RuntimeServiceStub(channel)
        images = api_pb2_grpc.ImageServiceStub(channel)
        spec = cri.ImageSpec(image=self._request.spec.image)
        self._image = translate.image_info(images.ImageStatus(cri.ImageStatusRequest(image=spec)).image)
        status = self._runtime.Status(cri.StatusRequest(verbose=True))
        self._engine = engine.read_engine(self._runtime.Version(cri.VersionRequest()), status)
        config = CriConfig(socket=node.containerd_socket, cgroup_parent=f"/{node.tag}")
        self._config = config
        self._v2 = cgroups.is_v2(Path(config.cgroup_root))

    def sample(self) -> float:
        """Milliseconds to the first line."""
        with self._started() as (_, milliseconds):
            return milliseconds

    @contextlib.contextmanager
    def container(self) -> Iterator[dict[str, Any]]:
        """One that has been made, as ``ctr`` describes it, with the folder that it sees."""
        with self._started() as (container, _):
            found: dict[str, Any] = json.loads(
                run("ctr", "--address", self._socket, "--namespace", "k8s.io", "containers", "info", container)
            )
            yield found

    @contextlib.contextmanager
    def _started(self) -> Iterator[tuple[str, float]]:
        name = f"raw-{secrets.token_hex(6)}"
        began = time.monotonic_ns()
        folder = Folder(self._root / name, self._request.job.runner)
        plan = self._plan(name, folder)
        node = engine.Node(cgroup_v2=self._v2, apparmor=False)
        placement = engine.place(plan.spec, name, self._engine, node, self._config)
        pod = self._runtime.RunPodSandbox(translate.run_pod_sandbox(plan, placement)).pod_sandbox_id
        try:
            made = self._runtime.CreateContainer(translate.create_container(plan, placement, pod))
            self._runtime.StartContainer(cri.StartContainerRequest(container_id=made.container_id))
            yield made.container_id, (folder.first_line() - began) / 1e6
        finally:
            self._runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod))
            self._runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod))
            if not self._v2:
                asyncio.run(cgroups.remove_group(Path(self._config.cgroup_root), placement.cgroup_parent))
            shutil.rmtree(folder.path)

    def _plan(self, name: str, folder: Folder) -> SandboxPlan:
        spec = self._request.spec
        return SandboxPlan(
            id=name,
            spec=spec,
            image=self._image,
            argv=(spec.python, f"{RUN_DIR}/agent.py"),
            env={"HOME": SCRATCH_DIR, **spec.env},
            mounts=folder.mounts,
            labels={LABEL_SANDBOX: name},
            annotations={},
            log_dir=str(folder.path),
        )


class Runc:
    """runc alone, with the OCI spec that the engine made of ours and a root file system that is there already."""

    def __init__(self, description: dict[str, Any], runner: str, rootfs: Path, root: Path) -> None:
        """``description`` is :meth:`RawCri.container`'s."""
        self._runner = runner
        self._root = root
        self._spec = description["Spec"]
        self._spec["root"]["path"] = str(rootfs)
        for namespace in self._spec["linux"]["namespaces"]:
            namespace.pop("path", None)  # the pod's

    def sample(self) -> float:
        """Milliseconds to the first line."""
        name = f"runc-{secrets.token_hex(6)}"
        runc = ["runc", "--root", str(self._root / "runc")]
        began = time.monotonic_ns()
        folder = Folder(self._root / name, self._runner)
        (folder.path / "config.json").write_text(json.dumps(self._own(name, folder)))
        with (folder.path / "log").open("w") as log:  # not a pipe: the container would hold it
            argv = [*runc, "run", "--detach", "--bundle", str(folder.path), name]
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)
        assert done.returncode == 0, (folder.path / "log").read_text()
        try:
            return (folder.first_line() - began) / 1e6
        finally:
            run(*runc, "delete", "--force", name)
            shutil.rmtree(folder.path)

    def _own(self, name: str, folder: Folder) -> dict[str, Any]:
        sources = {mount.target: mount.source for mount in folder.mounts}
        theirs = self._spec["mounts"]
        mounts = [{**each, "source": sources.get(each["destination"], each["source"])} for each in theirs]
        return {**self._spec, "mounts": mounts, "linux": {**self._spec["linux"], "cgroupsPath": f"/{name}"}}


@contextlib.contextmanager
def root_filesystem(node: Node, image: str, path: Path) -> Iterator[Path]:
    """The image's, mounted at ``path``."""
    path.mkdir()
    node.ctr("images", "mount", "--rw", image, str(path))  # runc makes the mount points in it
    try:
        yield path
    finally:
        node.ctr("images", "unmount", "--rm", str(path))
