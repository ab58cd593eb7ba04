"""ManagedContainerd: a containerd of Aircell's own, beside whatever else runs on the node.

It shares nothing with another containerd: own root, state, socket, CNI configuration and pause image. It is started
again when it dies, which no container notices: their shims hold them. It ends with the process that started it,
or at the latest when the next one starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
from pathlib import Path

from aircell.daemon import orphans
from aircell.daemon.cni import address_folder, remove_bridge, write_cni
from aircell.daemon.containerd_config import ContainerdConfig, installed_runtimes, lacks_sys_resource, render
from aircell.daemon.pause_image import PAUSE_IMAGE, write_pause_archive
from aircell.deadlines import within
from aircell.errors import EngineError, EngineUnavailable, InvalidSpec

logger = logging.getLogger(__name__)

_MAX_SOCKET_PATH = 107
_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 20.0
_LOAD_TIMEOUT = 600.0
_STEADY = 30.0
"""Seconds after which a containerd counts as having started well, so that the next restart is immediate again."""
_MAX_BACKOFF = 30.0


class ManagedContainerd:
    """Starts, watches and stops one containerd. Used from one asyncio loop."""

    def __init__(self, config: ContainerdConfig) -> None:
        """Raises InvalidSpec when the socket's path would be too long."""
        self.config = config
        self.socket = Path(config.state) / "containerd.sock"
        self.log = Path(config.state) / "containerd.log"
        self._config_file = Path(config.state) / "config.toml"
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        longest = f"{self.socket}.ttrpc"
        if len(longest.encode()) > _MAX_SOCKET_PATH:
            raise InvalidSpec(
                f"the socket path {longest} has {len(longest.encode())} bytes, Linux allows {_MAX_SOCKET_PATH}.",
                hint="Set containerd.state to a shorter folder.",
            )

    async def start(self) -> None:
        """Returns once containerd serves and the pause image is there.

        Raises EngineUnavailable when something that it needs is not installed, or it does not come up.
        """
        for folder in (self.config.root, self.config.state):
            Path(folder).mkdir(parents=True, exist_ok=True, mode=0o711)
        await self._write_config()
        try:
            await self._come_up()
            await self._ensure_pause_image()
        except BaseException:
            await self._terminate()
            raise
        self._watch = asyncio.create_task(self._restart_when_it_dies(), name="managed-containerd")

    async def stop(self) -> None:
        """Ends containerd; containers go on. Without any the bridge goes too. Idempotent."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        await self._terminate()
        await asyncio.to_thread(remove_bridge, self.config.bridge)

    async def load_image(self, archive: Path) -> None:
        """Imports an OCI or docker archive under the names that it carries. Raises EngineError."""
        await self._ctr("images", "import", "--snapshotter", self.config.snapshotter, str(archive))
        try:
            await within(_START_TIMEOUT, self._seen_by_cri())
        except asyncio.TimeoutError as error:
            raise EngineError(f"containerd imported {archive} but does not show it, see {self.log}.") from error

    async def remove_lost(self) -> None:
        """Removes the shims of containers that containerd has lost. Raises EngineError when it does not answer."""
        shims = orphans.find_shims(self.socket)  # before the list: a record is older than its shim
        known = await self._containers() if shims else set()
        for shim in shims:
            if shim.id not in known:
                await orphans.remove_shim(shim, Path(self.config.state))

    async def _containers(self) -> set[str]:
        return set((await self._ctr("containers", "list", "--quiet", timeout=30)).split())

    @property
    def ctr(self) -> str:
        """The client that came with it. Raises EngineUnavailable when there is none."""
        return self._program("ctr")

    @property
    def pid(self) -> int | None:
        """containerd's process, or None when it is not running."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def _write_config(self) -> None:
        runtimes = installed_runtimes(self._environment()["PATH"])
        if not runtimes:
            raise EngineUnavailable("no low-level runtime is installed.", hint="Install runc (Debian: runc).")
        config = self.config
        cni = await asyncio.to_thread(
            write_cni,
            Path(config.root) / "cni",
            Path(config.state),
            bridge=config.bridge,
            subnet=config.subnet,
            search=(config.cni_plugins,) if config.cni_plugins else (),
        )
        text = render(
            config,
            major=await self._major_version(),
            socket=self.socket,
            runtimes=runtimes,
            cni=cni,
            restrict_oom_score=lacks_sys_resource(Path("/proc/self/status").read_text()),
        )
        self._config_file.write_text(text)

    async def _major_version(self) -> int:
        output = await _run([self._program(self.config.binary), "--version"], timeout=30)
        match = re.search(r"\bv?(\d+)\.\d+\.\d+", output)
        if match is None:
            raise EngineUnavailable(f"{self.config.binary} does not tell its version: {output.strip()!r}")
        return int(match[1])

    def _program(self, name: str) -> str:
        path = shutil.which(name, path=self._environment()["PATH"])
        if path is None:
            raise EngineUnavailable(
                f"{name} is not installed.", hint="Install containerd (Debian: containerd), or set containerd.binary."
            )
        return path

    def _environment(self) -> dict[str, str]:
        """The shim, ctr and runtimes that came with the binary go before others; runc and iptables may be in sbin."""
        folder = str(Path(self.config.binary).parent) if "/" in self.config.binary else ""
        path = os.pathsep.join(filter(None, (folder, os.environ.get("PATH", ""), "/usr/sbin:/sbin:/usr/bin:/bin")))
        return {"PATH": path}

    async def _spawn(self) -> None:
        # setpriv: containerd ends with us, whatever ends us; orphans.end_daemons says when it does not.
        argv = [self._program("setpriv"), "--pdeathsig", "TERM", self._program(self.config.binary)]
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *argv,
                "--config",
                str(self._config_file),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=True,
            )

    async def _come_up(self) -> None:
        """Starts containerd, and removes what the one before it lost when it was killed."""
        state = Path(self.config.state)
        await orphans.end_daemons(self._config_file, _STOP_TIMEOUT)
        found = orphans.find_network(state, address_folder(state))
        await self._spawn()
        await self._ready()
        await self.remove_lost()
        await orphans.remove_network(found, await self._containers(), state)

    async def _ready(self) -> None:
        """Waits until containerd answers; raises EngineUnavailable with the end of its log when it does not."""
        loop = asyncio.get_running_loop()
        end = loop.time() + _START_TIMEOUT
        while loop.time() < end:
            if self.pid is None:
                break
            try:
                await self._ctr("version", timeout=5)
            except EngineError:
                await asyncio.sleep(0.05)
            else:
                return
        tail = self.log.read_text(errors="replace")[-4096:]
        raise EngineUnavailable(
            "containerd did not come up." if self.pid else "containerd ended at its start.",
            hint=f"Its log is {self.log}.",
            detail=tail,
        )

    async def _ensure_pause_image(self) -> None:
        if PAUSE_IMAGE in await self._image_names():
            return
        archive = Path(self.config.state) / "pause.tar"
        write_pause_archive(archive)
        await self.load_image(archive)
        archive.unlink()

    async def _image_names(self, filter: str = "") -> set[str]:
        return set((await self._ctr("images", "list", "--quiet", *([filter] if filter else []))).split())

    async def _seen_by_cri(self) -> None:
        """The CRI part of containerd learns of images by an event, and labels those that it has seen."""
        while await self._image_names() != await self._image_names('labels."io.cri-containerd.image"==managed'):
            await asyncio.sleep(0.05)

    async def _ctr(self, *arguments: str, timeout: float = _LOAD_TIMEOUT) -> str:
        argv = [self.ctr, "--address", str(self.socket), "--namespace", "k8s.io", *arguments]
        return await _run(argv, timeout=timeout)

    async def _restart_when_it_dies(self) -> None:
        backoff = 0.0
        loop = asyncio.get_running_loop()
        while True:
            assert self._process is not None  # noqa: S101 - start() made it before this task
            since = loop.time()
            code = await self._process.wait()
            backoff = 0.0 if loop.time() - since > _STEADY else min(max(2 * backoff, 0.2), _MAX_BACKOFF)
            logger.error("containerd ended with %s; starting it again in %.1f s", code, backoff)
            await asyncio.sleep(backoff)
            try:
                await self._come_up()
            except (EngineUnavailable, OSError) as error:
                logger.error("containerd did not start again: %s", error)
                await self._terminate()
            else:
                logger.info("containerd is back, pid %s", self.pid)

    async def _terminate(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await within(_STOP_TIMEOUT, process.wait())
        except asyncio.TimeoutError:
            logger.error("containerd did not end in %.0f s; killing it", _STOP_TIMEOUT)
            process.kill()
            await process.wait()


async def _run(argv: list[str], *, timeout: float) -> str:
    """The output of a command. Raises EngineError when it fails or takes too long."""
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        output, errors = await within(timeout, process.communicate())
    except asyncio.TimeoutError as error:
        raise EngineError(f"`{' '.join(argv)}` took more than {timeout:.0f} s.") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise EngineError(f"`{' '.join(argv)}` failed: {errors.decode(errors='replace').strip()}")
    return output.decode(errors="replace")
