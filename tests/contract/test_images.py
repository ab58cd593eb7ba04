"""Images: what is on the node, pulling, and each way in which a pull fails."""

from __future__ import annotations

import contextlib
import io
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aircell.backends.base import Backend, PullProgress, RegistryAuth
from aircell.errors import (
    AircellError,
    ImageNotFound,
    ImagePlatformMismatch,
    ImagePullFailed,
    ImageUnauthorized,
    InvalidSpec,
)
from images.build import docker_archive
from tests.contract.engines import Running
from tests.contract.harness import IMAGE, Harness
from tests.support.registry import Image, Registry, serving

pytestmark = pytest.mark.asyncio(loop_scope="session")


def ignore(_: PullProgress) -> None:
    """Progress is of no interest here."""


Serve = Callable[[Image], Registry]


@pytest.fixture
def serve(engine: Running) -> Iterator[Serve]:
    """Serves an image from a registry of which the engine knows that it speaks plain HTTP."""
    with contextlib.ExitStack() as stack:

        def start(image: Image) -> Registry:
            registry = stack.enter_context(serving(image))
            engine.allow_plain_http(registry.host)
            return registry

        yield start


@pytest.fixture
def registry(serve: Serve) -> Registry:
    return serve(Image())


async def test_an_image_on_the_node(backend: Backend) -> None:
    image = await backend.image(IMAGE)
    assert image is not None
    assert (image.reference, image.tags) == (IMAGE, (IMAGE,))
    assert image.id.startswith("sha256:")
    assert image.size > 2**20
    assert image.id in {each.id for each in await backend.images()}


async def test_an_image_that_is_not_there(backend: Backend) -> None:
    assert await backend.image("localhost/aircell/no-such:image") is None
    await backend.remove_image("localhost/aircell/no-such:image")


async def test_pull_and_remove(backend: Backend, registry: Registry) -> None:
    image = await backend.pull(registry.reference(), None, ignore)
    assert (image.reference, image.tags) == (registry.reference(), (registry.reference(),))
    assert image.digest.startswith(f"{registry.host}/image@sha256:")
    assert await backend.image(registry.reference()) == image
    await backend.remove_image(registry.reference())
    assert await backend.image(registry.reference()) is None


async def test_the_folder_of_images_is_on_this_node(backend: Backend) -> None:
    assert Path(await backend.image_folder()).is_dir()


async def test_pull_tells_how_far_it_is(backend: Backend, serve: Serve) -> None:
    size = 4_000_000
    seen: list[PullProgress] = []
    registry = serve(Image(size=size))
    registry.seconds_per_blob = 1.2
    await backend.pull(registry.reference(), None, seen.append)
    await backend.remove_image(registry.reference())
    assert max(each.total for each in seen) > size
    assert any(size / 4 < each.done < size for each in seen)
    assert [each.done for each in seen] == sorted(each.done for each in seen)


@pytest.mark.field("registry_credentials")
async def test_credentials(backend: Backend, registry: Registry) -> None:
    registry.credentials = ("user", "right")
    for auth in (None, RegistryAuth("user", "wrong")):
        with pytest.raises(ImageUnauthorized, match=r"image:latest.*registry_credentials"):
            await backend.pull(registry.reference(), auth, ignore)
    assert await backend.pull(registry.reference(), RegistryAuth("user", "right"), ignore)
    await backend.remove_image(registry.reference())


async def test_not_in_the_registry(backend: Backend, registry: Registry) -> None:
    with pytest.raises(ImageNotFound, match=r"other:latest does not exist"):
        await backend.pull(registry.reference("other"), None, ignore)


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_failing_registry(backend: Backend, registry: Registry, status: int) -> None:
    registry.status = status
    with pytest.raises(ImagePullFailed, match=r"image:latest"):
        await backend.pull(registry.reference(), None, ignore)


async def test_no_registry(backend: Backend) -> None:
    with pytest.raises(ImagePullFailed, match="cannot be reached"):
        await backend.pull("127.0.0.1:9/image:latest", None, ignore)
    with pytest.raises(ImagePullFailed, match="cannot be reached"):
        await backend.pull("registry.invalid/image:latest", None, ignore)


async def test_another_architecture(backend: Backend, serve: Serve) -> None:
    registry = serve(Image(architecture="s390x"))
    with pytest.raises(ImagePlatformMismatch, match="architecture"):
        await backend.pull(registry.reference(), None, ignore)


async def test_what_is_not_a_reference(backend: Backend) -> None:
    with pytest.raises(InvalidSpec, match="not an image reference"):
        await backend.pull("UPPER CASE", None, ignore)
    assert await backend.image("UPPER CASE") is None


@pytest.mark.first_kind("without Python in its image there is no zygote")
async def test_a_sandbox_from_a_pulled_image(harness: Harness, registry: Registry) -> None:
    harness.image = await harness.backend.pull(registry.reference(), None, ignore)
    sandbox = await harness.start(["/pause"])
    [info] = await harness.backend.sandboxes({})
    assert info.running
    await harness.backend.remove(sandbox)
    await harness.backend.remove_image(registry.reference())


async def test_a_layer_on_an_image(harness: Harness, tmp_path: Path) -> None:
    layer, name = tmp_path / "layer.tar", "localhost/aircell/layered:test"
    with tarfile.open(layer, "w") as archive:
        entry = tarfile.TarInfo("opt/added/file")
        entry.size = 5
        archive.addfile(entry, io.BytesIO(b"added"))
    image = await harness.backend.add_layer(harness.image, layer, name, {"PATH": "/opt/added", "NEW": "/opt/added"})
    assert image.tags == (name,)
    harness.image = image
    look = "import json, os; print(json.dumps([open('/opt/added/file').read(), os.environ['PATH'], os.environ['NEW']]))"
    content, path, new = await harness.report(look)
    assert (content, new) == ("added", "/opt/added")
    assert path.startswith("/opt/added:/usr/local/sbin:")
    await harness.backend.remove(harness.made[-1])
    await harness.backend.remove_image(name)
    assert await harness.backend.image(name) is None


async def test_an_image_from_an_archive(backend: Backend) -> None:
    name = "localhost/aircell/old-python:test"
    with docker_archive("old-python").open("rb") as archive:
        image = await backend.load(archive, name)
    assert image == await backend.image(name)
    await backend.remove_image(name)
    with tempfile.TemporaryFile() as empty, pytest.raises(AircellError):
        await backend.load(empty, name)
