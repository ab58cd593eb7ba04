"""aircelld as a whole: what is started in which order, and what a signal ends."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import signal
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import version
from pathlib import Path

from aircell.daemon import tracing
from aircell.daemon.calm import Calm
from aircell.daemon.concurrency import complete, end
from aircell.daemon.config import Config
from aircell.daemon.containerd import ManagedContainerd
from aircell.daemon.credentials import Keyring
from aircell.daemon.engines import Engines
from aircell.daemon.image_gc import ImageGc
from aircell.daemon.image_holds import ImageHolds
from aircell.daemon.image_ledger import ImageLedger
from aircell.daemon.images import ImageStore
from aircell.daemon.keeper import Keeper
from aircell.daemon.launcher import Launcher
from aircell.daemon.learned_preloads import LearnedPreloads
from aircell.daemon.maker import Maker
from aircell.daemon.notify import notify
from aircell.daemon.operations import Operations
from aircell.daemon.pods import Pods
from aircell.daemon.pool import Pools
from aircell.daemon.private_images import PrivateImages
from aircell.daemon.reaper import Reaper
from aircell.daemon.registry import Registry
from aircell.daemon.rights import Rights
from aircell.daemon.server import Server
from aircell.daemon.zygotes import Zygotes
from aircell.errors import DaemonUnavailable, EngineUnavailable

log = logging.getLogger(__name__)

_IDLE_CHECK = 1.0
_DESCRIPTORS = 65536
_ENGINE_PATIENCE = 5.0
"""Seconds that all engines together may take to answer before aircelld serves without them."""


async def run(config: Config) -> None:
    """Serves until SIGTERM or SIGINT, or until it has been idle for long enough.

    Jobs that run then go on, and the next aircelld adopts them. Raises DaemonUnavailable when another aircelld has
    the state folder or the socket, and AircellError for a node that cannot be served as it is configured.
    """
    _raise_descriptor_limit()
    with _only_one(config):
        (Path(config.state_dir) / "sandboxes").mkdir(mode=0o700, exist_ok=True)
        async with _managed_containerd(config) as containerd:
            engines = Engines(_backends(config, containerd), beside_kubelet=config.beside_kubelet)
            try:
                await _clear(engines)
                await _serve(config, engines, containerd)
            finally:
                await engines.close()


async def _serve(config: Config, engines: Engines, containerd: ManagedContainerd | None) -> None:
    registry = Registry()
    ledger = ImageLedger(Path(config.state_dir) / "images.json")
    holds = ImageHolds()
    images = _images(config, ledger, holds)
    learned = LearnedPreloads()
    tracer = tracing.start(config.tracing.endpoint, config.node_id())
    zygotes = Zygotes(config, engines, learned)
    calm = Calm()
    pods = Pods(config, engines, calm)
    pools = Pools(config, engines, zygotes, learned, pods, calm)
    image_gc = ImageGc(config.image_gc, engines, ledger, holds, in_use=pools.images)
    keeper = Keeper(config, engines)
    maker = Maker(config, engines, keeper, pools, zygotes, pods, calm)
    launcher = Launcher(config, engines, images, registry, pools, maker, keeper, learned, tracer)
    reaper = Reaper(config, engines, launcher, registry, pools, zygotes, pods, containerd)
    operations = Operations(config, engines, images, image_gc, registry, launcher, pools, reaper)
    server = Server(Path(config.socket_path), config.socket_group, operations)
    await reaper.sweep()
    server.listen()
    background = (reaper.run(), pools.run(), pods.run(), image_gc.run())
    work = [asyncio.create_task(each) for each in (server.serve(), *background)]
    if config.idle_exit:
        work.append(asyncio.create_task(_idle(config.idle_exit, server, registry)))
    signalled = asyncio.create_task(_signalled())
    log.info("aircelld %s, pid %d, listens on %s", version("aircell"), os.getpid(), config.socket_path)
    notify("READY=1")
    try:
        done, _ = await asyncio.wait({*work, signalled}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        notify("STOPPING=1")
        log.info("aircelld stops; %d sandboxes", len(registry))
        await end(signalled, *work)
        await registry.leave()
        await pools.drain()
        await server.close()
        await asyncio.to_thread(tracer.stop)


def _images(config: Config, ledger: ImageLedger, holds: ImageHolds) -> ImageStore:
    hosts = [config.containerd_config().registry_hosts] if config.managed_containerd else []
    keyring = Keyring(config.registry_credentials)
    private = PrivateImages(Path(config.state_dir) / "private-images.json")
    return ImageStore(keyring, Rights(config.image_rights, hosts, keyring, private), private, ledger, holds)


def _raise_descriptor_limit() -> None:
    """Each sandbox takes several, and the usual limit of 1024 is for users of select(2), which we are not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _DESCRIPTORS)), hard))


@contextlib.contextmanager
def _only_one(config: Config) -> Iterator[None]:
    """Holds the state folder's lock, which the kernel releases however aircelld ends."""
    state = Path(config.state_dir)
    state.mkdir(parents=True, exist_ok=True, mode=0o711)
    Path(config.run_dir).mkdir(parents=True, exist_ok=True, mode=0o711)
    with (state / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DaemonUnavailable(
                f"another aircelld has the state folder {state}.",
                hint="Use that one, or give this one a `state_dir` of its own.",
            ) from error
        yield


@contextlib.asynccontextmanager
async def _managed_containerd(config: Config) -> AsyncIterator[ManagedContainerd | None]:
    """Our own containerd, when it is ours to run."""
    if not config.managed_containerd:
        yield None
        return
    containerd = ManagedContainerd(config.containerd_config())
    await containerd.start()
    try:
        yield containerd
    finally:
        await containerd.stop()


def _backends(config: Config, containerd: ManagedContainerd | None) -> dict[str, dict[str, object]]:
    """Their settings, with our own containerd behind ``cri``."""
    if containerd is None:
        return config.backends
    ours = {"socket": str(containerd.socket), "ctr": containerd.ctr}
    return {**config.backends, "cri": {**config.backends.get("cri", {}), **ours}}


async def _clear(engines: Engines) -> None:
    """Refuses, before anything is served, an engine on which a kubelet would remove our sandboxes.

    One that has just been started is waited for: after a crash it first recovers what it ran.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + _ENGINE_PATIENCE
    for name, _ in engines:
        while True:
            try:
                await engines.clear(name)
                break
            except EngineUnavailable as error:
                if loop.time() > end:
                    log.warning("backend %s does not answer yet: %s", name, error)
                    break
            await asyncio.sleep(0.05)


async def _signalled() -> None:
    """Returns at SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    came: asyncio.Future[None] = loop.create_future()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, complete, came)
    await came


async def _idle(seconds: float, server: Server, registry: Registry) -> None:
    """Returns once there was neither a sandbox nor a client for ``seconds``."""
    loop = asyncio.get_running_loop()
    since = loop.time()
    while loop.time() - since < seconds:
        await asyncio.sleep(min(_IDLE_CHECK, seconds))
        if len(registry) or server.clients:
            since = loop.time()
    log.info("idle for %g s", seconds)
