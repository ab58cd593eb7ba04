"""A real registry, and each way in which it fails: what is said, and what to do next."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from aircell.backends.base import Backend, PullProgress, RegistryAuth
from aircell.errors import (
    ImageError,
    ImageNotFound,
    ImagePlatformMismatch,
    ImagePullFailed,
    ImageUnauthorized,
    RegistryFailed,
)
from tests.contract.engines import RunningContainerd, RunningDocker
from tests.support.docker_registry import SECRETS, Shop, shop
from tests.support.faulty import Fault, door
from tests.support.registry import Image, serving

pytestmark = pytest.mark.asyncio(loop_scope="session")

ALICE = RegistryAuth("alice", SECRETS["alice"])
LARGE = 3_000_000


def ignore(_: PullProgress) -> None:
    """Progress is of no interest here."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with shop(tmp_path_factory.mktemp("shop")) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def hasty(engine: RunningContainerd | RunningDocker) -> AsyncIterator[Backend]:
    """A backend that waits for nothing."""
    backend = engine.new_backend(pull_stall_timeout=1.5)
    yield backend
    await backend.close()


async def test_a_password_and_a_certificate_of_ones_own(
    engine: RunningContainerd | RunningDocker, backend: Backend, store: Shop
) -> None:
    digest = store.stock("own")
    engine.trust(store.locked.host, store.certificate)
    with pytest.raises(ImageUnauthorized, match="registry_credentials"):
        await backend.pull(store.locked.reference("own"), RegistryAuth("alice", "wrong"), ignore)
    image = await backend.pull(store.locked.reference("own"), ALICE, ignore)
    assert image.digest == f"{store.locked.host}/own@{digest}"
    await backend.remove_image(store.locked.reference("own"))


async def test_tokens(backend: Backend, store: Shop) -> None:
    store.stock("tokens")
    store.tokens.repositories["alice"].add("tokens")
    for stranger in (None, RegistryAuth("bob", SECRETS["bob"]), RegistryAuth("alice", "wrong")):
        with pytest.raises(ImageUnauthorized, match="registry_credentials"):
            await backend.pull(store.team.reference("tokens"), stranger, ignore)
    for auth in (ALICE, RegistryAuth(identity_token="alice-identity")):
        store.tokens.identity_tokens["alice-identity"] = "alice"
        assert await backend.pull(store.team.reference("tokens"), auth, ignore)
        await backend.remove_image(store.team.reference("tokens"))


async def test_what_is_not_there(backend: Backend, store: Shop) -> None:
    with pytest.raises(ImageNotFound, match=r"does not exist in its registry.* Check its name and tag"):
        await backend.pull(store.open.reference("nowhere"), None, ignore)


async def test_another_architecture(backend: Backend, store: Shop) -> None:
    store.stock("mainframe", Image(architecture="s390x"))
    with pytest.raises(ImagePlatformMismatch, match=r"no variant for this node's architecture.* Build or name one"):
        await backend.pull(store.open.reference("mainframe"), None, ignore)


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ("stalls", ImagePullFailed, r"stopped coming \(nothing came for 1.5 s\).*pull_stall_timeout"),
        ("hangs", ImagePullFailed, r"stopped coming|cannot be reached"),
        ("dies", RegistryFailed, "the registry broke off.* Look at the registry's log"),
        ("corrupts", ImagePullFailed, "a layer that is not what its digest says.* push it again"),
        ("busy", RegistryFailed, "because the registry failed.* another try may succeed"),
    ],
)
async def test_a_registry_that_fails(
    engine: RunningContainerd | RunningDocker,
    hasty: Backend,
    store: Shop,
    fault: Fault,
    kind: type[ImagePullFailed],
    said: str,
) -> None:
    store.stock(fault, Image(size=LARGE))
    with door(store.open.host, fault) as behind:
        engine.allow_plain_http(behind.host)
        with pytest.raises(kind, match=said) as caught:
            await hasty.pull(behind.reference(fault), None, ignore)
    assert type(caught.value) is kind
    assert behind.reference(fault) in caught.value.message


async def test_a_manifest_that_is_none(engine: RunningContainerd | RunningDocker, backend: Backend) -> None:
    image = Image()
    image.break_manifest()
    with serving(image) as registry:
        engine.allow_plain_http(registry.host)
        with pytest.raises(ImageError, match=r"has a manifest that the engine cannot read.* Build and push it again"):
            await backend.pull(registry.reference(), None, ignore)


async def test_no_space_on_the_device(engine: RunningContainerd | RunningDocker, backend: Backend, store: Shop) -> None:
    store.stock("large", Image(size=LARGE))
    with (
        nearly_full(engine.folder),
        pytest.raises(ImagePullFailed, match=r"does not fit on .*no space left.* Remove unused") as caught,
    ):
        await backend.pull(store.open.reference("large"), None, ignore)
    assert type(caught.value) is ImagePullFailed
    assert await backend.pull(store.open.reference("large"), None, ignore)
    await backend.remove_image(store.open.reference("large"))


@contextlib.contextmanager
def nearly_full(folder: Path) -> Iterator[None]:
    """Leaves the tmpfs that an engine lives on too little room for a large image."""
    usage = os.statvfs(folder)
    used = (usage.f_blocks - usage.f_bfree) * usage.f_frsize
    remount(folder, str(used + LARGE // 2))
    try:
        yield
    finally:
        remount(folder, "50%")


def remount(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
