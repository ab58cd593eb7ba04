"""A containerd of our own: it starts from nothing, is started again, and never stays behind alone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aircell.backends.cri.backend import CriBackend
from aircell.daemon.containerd import ManagedContainerd
from aircell.daemon.containerd_config import ContainerdConfig
from aircell.errors import EngineUnavailable
from aircell.status import ExitStatus
from tests.contract.engines import CONTAINERDS, Containerd, short_folder
from tests.contract.harness import IMAGE, Harness
from tests.support.images import archive

SUBNET = "10.213.78.0/24"
BRIDGE = Path("/sys/class/net/acmanaged0")


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


def config(folder: Path, binary: str = "containerd") -> ContainerdConfig:
    return ContainerdConfig(
        root=str(folder / "root"), state=str(folder / "state"), binary=binary, bridge=BRIDGE.name, subnet=SUBNET
    )


def has_bridge() -> bool:
    return BRIDGE.exists()


@pytest.mark.parametrize("engine", [CONTAINERDS[0], CONTAINERDS[2]], ids=lambda engine: engine.name)
async def test_sandboxes_and_images_outlive_a_stop(folder: Path, engine: Containerd) -> None:
    first = ManagedContainerd(config(folder, engine.binary))
    await first.start()
    await first.load_image(archive("base"))
    backend = CriBackend({"socket": str(first.socket)})
    image = await backend.image(IMAGE)
    assert image is not None
    harness = Harness(backend, image, folder)
    sandbox = await harness.start("import time; time.sleep(2); exit(4)", network="pod")
    await first.stop()
    await first.stop()
    assert first.pid is None
    assert has_bridge(), "a sandbox still uses it"

    second = ManagedContainerd(config(folder, engine.binary))
    await second.start()
    assert await backend.wait(sandbox) == ExitStatus(code=4)
    assert await backend.image(IMAGE) == image
    await backend.remove(sandbox)
    await backend.close()
    await second.stop()
    assert not has_bridge()


async def test_an_engine_that_does_not_start(folder: Path) -> None:
    program = folder / "containerd"
    program.write_text('#!/bin/sh\n[ "$1" = --version ] && exec containerd --version\necho "no good" >&2\nexit 1\n')
    program.chmod(0o755)
    managed = ManagedContainerd(config(folder, str(program)))
    with pytest.raises(EngineUnavailable, match=r"ended at its start.*containerd\.log") as failure:
        await managed.start()
    assert failure.value.detail == "no good\n"
    assert managed.pid is None


async def test_an_engine_that_is_not_installed(folder: Path) -> None:
    with pytest.raises(EngineUnavailable, match=r"no-such-containerd is not installed.*containerd\.binary"):
        await ManagedContainerd(config(folder, "no-such-containerd")).start()


PARENT = """
import asyncio, sys
from aircell.daemon.containerd import ManagedContainerd
from aircell.daemon.containerd_config import ContainerdConfig

async def main():
    managed = ManagedContainerd(ContainerdConfig.model_validate_json(sys.argv[1]))
    await managed.start()
    print(managed.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_it_ends_with_whoever_started_it(folder: Path) -> None:
    argv = [sys.executable, "-c", PARENT, config(folder).model_dump_json()]
    parent = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    containerd = os.pidfd_open(int(await parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    try:
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(containerd, ended.set)
        await asyncio.wait_for(ended.wait(), 20)
    finally:
        asyncio.get_running_loop().remove_reader(containerd)
        os.close(containerd)
