"""What a contract test asks for: an engine that runs, a backend on it, and a harness around that."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from aircell.backends.base import Backend
from tests.contract.engines import Engine, Running
from tests.contract.harness import IMAGE, Harness


def on(*engines: Engine) -> Any:
    """The fixture ``engine``: each of these in turn, started once."""

    @pytest_asyncio.fixture(
        scope="session", loop_scope="session", params=engines, ids=lambda each: each.name, name="engine"
    )
    async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Running]:
        async with request.param.running() as running:
            yield running

    return engine


@pytest_asyncio.fixture(loop_scope="session")
async def backend(engine: Running) -> AsyncIterator[Backend]:
    backend = engine.new_backend()
    yield backend
    await backend.close()


@pytest_asyncio.fixture(loop_scope="session")
async def harness(engine: Running, backend: Backend, tmp_path: Path) -> AsyncIterator[Harness]:
    image = await backend.image(IMAGE)
    assert image is not None
    harness = Harness(backend, image, tmp_path, runtime_handler=engine.runtime, gateway=engine.gateway)
    yield harness
    for sandbox in harness.made:
        await backend.remove(sandbox)
    assert await backend.sandboxes({}) == []
