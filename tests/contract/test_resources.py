"""Limits that are hit, not only set."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aircell.spec import Mount, Resources
from aircell.status import ExitStatus
from tests.contract.harness import Harness

pytestmark = pytest.mark.asyncio(loop_scope="session")

MIB = 2**20
CGROUPS = Path("/sys/fs/cgroup")


@pytest.mark.field("resources.pids")
async def test_pids(harness: Harness) -> None:
    program = """
import json, os, time
made = 0
try:
    while made < 200:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
except BlockingIOError:
    pass
print(json.dumps(made))
"""
    assert 15 <= await harness.report(program, resources=Resources(pids=20)) <= 20
    assert await harness.report(program, resources=Resources(pids=None)) == 200


@pytest.mark.field("resources.memory")
async def test_memory_of_the_first_process(harness: Harness) -> None:
    outcome = await harness.run("x = bytearray(300 << 20); print(len(x))", resources=Resources(memory=64 * MIB))
    assert (outcome.exit.signal, outcome.exit.oom_killed) == (9, True)
    assert "memory" in outcome.exit.reason


@pytest.mark.field("resources.memory")
@pytest.mark.parametrize("generations", [1, 2], ids=["child", "grandchild"])
async def test_memory_of_a_descendant(harness: Harness, generations: int) -> None:
    program = "x = bytearray(300 << 20)"
    for _ in range(generations):
        program = f"""
import subprocess, sys
child = subprocess.run([sys.executable, "-c", {program!r}])
sys.exit(0 if child.returncode in (-9, 0) else 1)
"""
    outcome = await harness.run(program, resources=Resources(memory=64 * MIB))
    assert (outcome.exit.code, outcome.exit.oom_killed) == (0, True)


async def test_memory_within_the_limit(harness: Harness) -> None:
    outcome = await harness.run("x = bytearray(30 << 20)", resources=Resources(memory=64 * MIB))
    assert outcome.exit == ExitStatus(code=0)


@pytest.mark.field("resources.cpus")
async def test_cpus(harness: Harness) -> None:
    program = """
import json, time
start = time.monotonic()
while time.monotonic() < start + 2:
    pass
print(json.dumps(time.process_time()))
"""
    assert 0.3 < await harness.report(program, resources=Resources(cpus=0.25)) < 0.8


@pytest.fixture
def bounded(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory that holds 8 MiB, as aircelld makes one for a bounded scratch or /dev/shm."""
    folder = tmp_path / "bounded"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=1777", "bounded", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


FILL = """
import errno, json, os, sys
def fill(path):
    with open(path, "wb", buffering=0) as file:
        written = 0
        try:
            while written < 64 << 20:
                written += file.write(bytes(1 << 20))
        except OSError as error:
            assert error.errno == errno.ENOSPC
    os.unlink(path)
    return written
"""


@pytest.mark.field("resources.shm")
async def test_shm(harness: Harness, bounded: Path) -> None:
    mounts = [Mount(source=str(bounded), target="/dev/shm", read_only=False)]
    program = FILL + "print(json.dumps(fill('/dev/shm/x')))"
    assert await harness.report(program, mounts=mounts, resources=Resources(shm=8 * MIB)) == 8 * MIB


@pytest.mark.field("resources.shm, not mounted by aircelld")
async def test_shm_of_the_engine(harness: Harness) -> None:
    assert await harness.report(FILL + "print(json.dumps(fill('/dev/shm/x')))", resources=Resources(shm=8 * MIB)) == (
        8 * MIB
    )


@pytest.mark.field("resources.scratch")
async def test_scratch(harness: Harness, bounded: Path) -> None:
    mounts = [Mount(source=str(bounded), target="/tmp", read_only=False)]
    program = FILL + "print(json.dumps(fill('/tmp/x')))"
    assert await harness.report(program, mounts=mounts, resources=Resources(scratch=8 * MIB)) == 8 * MIB


@pytest.mark.field("cgroup_parent")
async def test_cgroup_parent(harness: Harness) -> None:
    sandbox = await harness.start(["sleep", "60"], cgroup_parent="/aircell-contract")
    assert any(path.read_text() for path in CGROUPS.glob("*/aircell-contract/*/**/cgroup.procs"))
    await harness.backend.remove(sandbox)
    assert not list(CGROUPS.glob("*/aircell-contract/*/"))
    for path in CGROUPS.glob("*/aircell-contract"):
        path.rmdir()


@pytest.fixture
def device() -> Iterator[str]:
    """A CDI device that is no more than an environment variable."""
    folder = Path("/var/run/cdi")
    folder.mkdir(exist_ok=True)
    file = folder / "aircell-test.json"
    edits = {"env": ["FROM_CDI=yes"]}
    devices = [{"name": "one", "containerEdits": edits}]
    file.write_text(json.dumps({"cdiVersion": "0.5.0", "kind": "aircell.test/device", "devices": devices}))
    yield "aircell.test/device=one"
    file.unlink()


@pytest.mark.field("devices")
async def test_devices(harness: Harness, device: str) -> None:
    program = "import json, os; print(json.dumps(os.environ.get('FROM_CDI')))"
    assert await harness.report(program, devices=(device,)) == "yes"
