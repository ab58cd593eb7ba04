"""Aircell's contract for backends, on this backend."""

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from acme_sandbox import AcmeBackend

from aircell.backends.base import Backend
from tests.contract.footprint import Footprint, descriptors, footprint
from tests.contract.suite import *  # noqa: F403 - every test of the contract
from tests.contract.suite import on


@dataclass(frozen=True)
class AcmeEngine:
    """An engine, as ``tests.contract.engines.Engine`` and ``Running`` want it."""

    name: str = "acme"
    runtime: str = "runc"
    gateway: str = "10.213.77.1"
    folder: Path = Path(os.environ["ACME_FOLDER"])

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["AcmeEngine"]:
        yield self  # it runs, and has the image of `images.build.archive("base")`; yours may have to be started here

    def new_backend(self) -> Backend:
        return AcmeBackend({"socket": f"{self.folder}/state/containerd.sock"})

    def allow_plain_http(self, host: str) -> None:
        registry = self.folder / "registries" / host
        registry.mkdir(parents=True)
        (registry / "hosts.toml").write_text(f'server = "http://{host}"\n')

    def footprint(self, cgroup_parent: str) -> Footprint:
        return footprint(self.folder, "accontract0", cgroup_parent)

    def descriptors(self) -> int:
        return descriptors(self.folder)


engine = on(AcmeEngine())
