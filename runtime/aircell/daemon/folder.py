"""A sandbox's folder on the node's disk: ``<state_dir>/sandboxes/<id>/``. Only root may enter it.

sandbox.json    the record
run/            mounted read-only at /run/aircell: gate.sock, agent.json; agent.py and what lies beside it, runner.py,
                or the program of a shell
scratch/        mounted at /tmp
shm/            mounted at /dev/shm, when the spec gives it a size
log/            what the agent's container wrote
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import aircell.agent
from aircell.daemon.executables import SHELL, executable
from aircell.daemon.record import Record
from aircell.daemon.shape import Shape
from aircell.errors import EngineError
from aircell.spec import AUTO, RUN_DIR, SCRATCH_DIR, Mount, SandboxSpec

_NAMES = ("agent.py", "import_clock.py", "resident.py", "zygote.py")
_PROGRAMS = [Path(aircell.agent.__file__).with_name(name) for name in _NAMES]
SHELL_PROGRAM = "shell"
SHM_DIR = "/dev/shm"  # noqa: S108 - the path inside the sandbox, private to it


class Folder:
    """One such folder, which may or may not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = path / "run"
        self.log = path / "log"
        self.gate = self.run / "gate.sock"
        self._scratch = path / "scratch"
        self._shm = path / "shm"
        self._record = path / "sandbox.json"

    @classmethod
    def of(cls, state_dir: str, name: str) -> Folder:
        """The folder of the sandbox that was made under that name; it may not exist."""
        return cls(Path(state_dir) / "sandboxes" / name)

    async def make(self, record: Record, shape: Shape, *, shell: bool) -> None:
        """Makes everything but the gate; of a shell without what its zygote has.

        Raises OSError, EngineError when a tmpfs cannot be mounted, EngineUnavailable without a shell for this machine.
        """
        self._fill(record, shape)
        if shell:
            _write(self.run / SHELL_PROGRAM, executable(SHELL), 0o755)
        else:
            self._add_agent(shape)
        resources = shape.spec.resources
        for path, size in ((self._scratch, resources.scratch), (self._shm, resources.shm)):
            if size:
                options = f"size={size},mode=1777,nosuid,nodev"
                await _command("mount", "-t", "tmpfs", "-o", options, "aircell", str(path))

    def mounts(self, spec: SandboxSpec) -> tuple[Mount, ...]:
        """What of it the sandbox sees."""
        run = Mount(source=str(self.run), target=RUN_DIR)
        scratch = Mount(source=str(self._scratch), target=SCRATCH_DIR, read_only=False)
        shm = Mount(source=str(self._shm), target=SHM_DIR, read_only=False)
        return (run, scratch, shm) if spec.resources.shm else (run, scratch)

    def save(self, record: Record) -> None:
        """Writes the record, whole or not at all."""
        new = self._record.with_suffix(".new")
        new.write_text(record.model_dump_json())
        new.replace(self._record)

    def load(self) -> Record | None:
        """The record, or None where there is none that can be read."""
        try:
            return Record.model_validate_json(self._record.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    async def remove(self) -> None:
        """Unmounts and deletes. Idempotent. Raises EngineError when something still holds it."""
        for mounted in self._mounted():
            await _command("umount", str(mounted))
        # rm, because shutil.rmtree recurses and a job may nest folders deeper than Python's stack.
        await _command("rm", "-rf", "--one-file-system", "--", str(self.path))

    def _mounted(self) -> list[Path]:
        return [path for path in (self._scratch, self._shm) if path.is_mount()]

    def _fill(self, record: Record, shape: Shape) -> None:
        self.path.mkdir(mode=0o700)
        self.save(record)
        self.run.mkdir(mode=0o755)
        self.log.mkdir(mode=0o700)
        _write(self.run / "agent.json", json.dumps(_agent_settings(shape)).encode())
        for writable in (self._scratch, self._shm):
            writable.mkdir()
            writable.chmod(0o1777)  # any user may make files there, as in /tmp

    def _add_agent(self, shape: Shape) -> None:
        for program in _PROGRAMS:
            _write(self.run / program.name, program.read_bytes())
        if shape.runner:
            _write(self.run / "runner.py", shape.runner.encode())


def _agent_settings(shape: Shape) -> dict[str, Any]:
    return {
        "preload": [name for name in shape.spec.preload if name != AUTO],
        "mounts": [mount.target for mount in shape.mounts],
        **({"learn": True, "learned": shape.learned} if shape.learns else {}),
    }


def _write(path: Path, content: bytes, mode: int = 0o644) -> None:
    path.write_bytes(content)
    path.chmod(mode)


async def _command(*argv: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise EngineError(f"`{' '.join(argv)}` failed: {output.decode(errors='replace').strip()}")
