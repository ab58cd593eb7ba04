"""What backends say without an engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from aircell.backends.base import Backend
from aircell.backends.cri.backend import CriBackend
from aircell.backends.docker.backend import DockerBackend
from aircell.errors import EngineUnavailable, InvalidSpec


@pytest.mark.parametrize(("kind", "key"), [(CriBackend, "socket"), (DockerBackend, "host")])
async def test_no_engine(tmp_path: Path, kind: type[Backend], key: str) -> None:
    scheme = "unix://" if key == "host" else ""
    backend = kind({key: f"{scheme}{tmp_path}/none.sock"})
    with pytest.raises(EngineUnavailable, match=r"none\.sock.*aircell doctor"):
        await backend.info()
    await backend.close()
    await backend.close()


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (CriBackend, {"sockte": "/run/containerd/containerd.sock"}),
        (DockerBackend, {"sockte": "unix:///run/docker.sock"}),
        (DockerBackend, {"host": "ssh://node"}),
    ],
)
def test_a_malformed_configuration(kind: type[Backend], config: Mapping[str, object]) -> None:
    with pytest.raises(InvalidSpec, match="|".join(config)):
        kind(config)
