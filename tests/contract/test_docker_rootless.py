"""A dockerd that an ordinary user runs: what it cannot enforce is refused, the rest is as on any other."""

from __future__ import annotations

import os
import shlex
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from aircell.backends.docker.backend import DockerBackend
from aircell.errors import UnsupportedSpec
from aircell.spec import Resources, SandboxSpec
from aircell.status import ExitStatus
from tests.contract.engines import short_folder
from tests.contract.harness import IMAGE, Harness
from tests.support.dockerd import Dockerd

NOBODY = 65534
NO_LIMITS = Resources(memory=None, pids=None)


class RootlessDockerd(Dockerd):
    """Of the user ``nobody``, who gets a range of user ids for it; on the network of the node."""

    def start(self) -> None:
        self.start_process()

    def command(self) -> list[str]:
        ranges = self.root / "ranges"
        ranges.write_text("nobody:100000:65536\n")
        run = self.root / "run"
        run.mkdir(mode=0o700)
        home = self.root / "home"
        home.mkdir(mode=0o700)
        for folder in (self.root, run, home):
            os.chown(folder, NOBODY, NOBODY)
        dockerd = shlex.join([*super().command(), "--rootless"])
        inside = f"rm -f /run/docker /run/containerd /run/xtables.lock; exec {dockerd}"
        kit = ["rootlesskit", f"--state-dir={run}/kit", "--net=host", "--copy-up=/etc", "--copy-up=/run"]
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        user += ["env", f"HOME={home}", f"XDG_RUNTIME_DIR={run}", *kit, "--propagation=rslave", "sh", "-c", inside]
        binds = "".join(f"mount --bind {ranges} {file} && " for file in ("/etc/subuid", "/etc/subgid"))
        return ["unshare", "--mount", "sh", "-c", f"{binds}exec {shlex.join(user)}"]


@pytest.fixture(scope="module")
def dockerd() -> Iterator[Dockerd]:
    with short_folder() as folder:
        for file in ("subuid", "subgid"):
            Path("/etc", file).touch()
        dockerd = RootlessDockerd(folder, bridge="none", address="")
        try:
            dockerd.start()
            dockerd.load("base")
            yield dockerd
        finally:
            dockerd.end()


@pytest_asyncio.fixture
async def rootless(dockerd: Dockerd, tmp_path: Path) -> AsyncIterator[Harness]:
    backend = DockerBackend({"host": dockerd.host})
    image = await backend.image(IMAGE)
    assert image is not None
    yield Harness(backend, image, tmp_path)
    assert await backend.sandboxes({}) == []
    await backend.close()


async def test_a_sandbox(rootless: Harness) -> None:
    program = "import json, os; print(json.dumps([os.getuid(), [p for p in os.listdir('/proc') if p.isdecimal()]]))"
    assert await rootless.report(program, resources=NO_LIMITS) == [50000, ["1"]]
    sandbox = await rootless.start(["sleep", "60"], resources=NO_LIMITS)
    await rootless.backend.stop(sandbox, 0)
    assert await rootless.backend.wait(sandbox) == ExitStatus(signal=9)
    for made in rootless.made:
        await rootless.backend.remove(made)


async def test_limits_are_set_or_refused(rootless: Harness, dockerd: Dockerd) -> None:
    """It says itself which: without cgroup v2 none."""
    able = dockerd.info()["MemoryLimit"]
    spec = SandboxSpec(image=IMAGE, resources=Resources(memory=2**28, pids=None))
    if able:
        await rootless.backend.check(spec)
    else:
        with pytest.raises(UnsupportedSpec, match="memory and swap"):
            await rootless.backend.check(spec)
