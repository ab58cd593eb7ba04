"""Mounts: files and folders, read-only unless said otherwise."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aircell.errors import InvalidSpec
from aircell.spec import Mount
from tests.contract.harness import Harness

pytestmark = pytest.mark.asyncio(loop_scope="session")

WRITE = """
import json
def write(path):
    try:
        with open(path, "a") as file:
            file.write("inside")
    except OSError as error:
        return error.errno
    return 0
"""


@pytest.mark.field("mounts")
async def test_read_only_and_read_write(harness: Harness, tmp_path: Path) -> None:
    for name in ("ro", "rw"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)
        (tmp_path / name / "there").write_text(name)
    mounts = [
        Mount(source=str(tmp_path / "ro"), target="/mnt/ro"),
        Mount(source=str(tmp_path / "rw"), target="/mnt/rw", read_only=False),
    ]
    report = await harness.report(
        WRITE
        + "print(json.dumps([open('/mnt/ro/there').read(), open('/mnt/rw/there').read(),"
        + " write('/mnt/ro/new'), write('/mnt/rw/new')]))",
        mounts=mounts,
    )
    assert report == ["ro", "rw", errno.EROFS, 0]
    assert (tmp_path / "rw" / "new").read_text() == "inside"
    assert not (tmp_path / "ro" / "new").exists()


async def test_a_file(harness: Harness, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    report = await harness.report(
        WRITE + "print(json.dumps([open('/etc/hosts').read(), write('/etc/hosts')]))",
        mounts=[Mount(source=str(tmp_path / "file"), target="/etc/hosts")],
        user="0",
    )
    assert report == ["content", errno.EROFS]


async def test_nested_targets_in_any_order(harness: Harness, tmp_path: Path) -> None:
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other").chmod(0o777)
    mounts = [
        Mount(source=str(tmp_path / "other"), target="/mnt/outer/inner", read_only=False),
        Mount(source=str(tmp_path / "outer"), target="/mnt/outer"),
    ]
    report = await harness.report(
        WRITE + "print(json.dumps([write('/mnt/outer/inner/new'), write('/mnt/outer/new')]))", mounts=mounts
    )
    assert report == [0, errno.EROFS]
    assert (tmp_path / "other" / "new").exists()


@pytest.fixture
def outer(tmp_path: Path) -> Iterator[Path]:
    """A folder in which another file system is mounted."""
    below = tmp_path / "outer" / "with space"
    below.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=777", "below", str(below)], check=True)
    (below / "there").write_text("yes")
    yield tmp_path / "outer"
    subprocess.run(["umount", str(below)], check=True)


@pytest.mark.field("mounts")
async def test_read_only_holds_for_what_is_mounted_below(harness: Harness, outer: Path) -> None:
    report = await harness.report(
        WRITE + "print(json.dumps([open('/mnt/with space/there').read(), write('/mnt/with space/new')]))",
        mounts=[Mount(source=str(outer), target="/mnt")],
    )
    assert report == ["yes", errno.EROFS]


async def test_a_symlink_is_followed_to_what_it_names(harness: Harness, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "there").write_text("yes")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    report = await harness.report(
        "import json; print(json.dumps(open('/mnt/there').read()))",
        mounts=[Mount(source=str(tmp_path / "link"), target="/mnt")],
    )
    assert report == "yes"


@pytest.mark.field("mounts")
async def test_a_missing_source_fails_before_anything_runs(harness: Harness, tmp_path: Path) -> None:
    plan = harness.plan("", mounts=[Mount(source=str(tmp_path / "missing"), target="/mnt")])
    with pytest.raises(InvalidSpec, match="missing"):
        await harness.backend.create(plan)
    assert not (tmp_path / "missing").exists()
    assert await harness.backend.sandboxes({}) == []
