"""Programs of our own, run on this machine; those for another processor were run under qemu-user once."""

from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aircell.daemon.executables import PAUSE, SHELL, executable
from aircell.errors import EngineUnavailable
from aircell.spec import RUN_DIR

GATE = f"{RUN_DIR}/gate.sock".encode()


def test_pause_waits_in_its_system_call(tmp_path: Path) -> None:
    program = tmp_path / "pause"
    program.write_bytes(executable(PAUSE))
    program.chmod(0o755)
    process = subprocess.Popen([program])
    try:
        end = time.monotonic() + 10
        number = {"x86_64": "34", "aarch64": "73"}[platform.machine()]
        while Path(f"/proc/{process.pid}/syscall").read_text().split()[0] != number:
            assert process.poll() is None
            assert time.monotonic() < end
        ticks = os.sysconf("SC_CLK_TCK")
        used = Path(f"/proc/{process.pid}/stat").read_text().split()[13:15]
        assert sum(map(int, used)) / ticks < 0.1, "it waits, it does not spin"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "g"))
        listener.listen()
        listener.settimeout(10)
        yield listener


@pytest.fixture
def shell(tmp_path: Path, listener: socket.socket) -> Iterator[subprocess.Popen[bytes]]:
    """Its gate is where the test's is: at a path of the same length, relative to its folder."""
    path = b"./" + b"g" * (len(GATE) - 2)
    (tmp_path / os.fsdecode(path)).symlink_to("g")
    program = tmp_path / "shell"
    program.write_bytes(executable(SHELL).replace(GATE, path))
    program.chmod(0o755)
    with subprocess.Popen([program], cwd=tmp_path) as process:
        yield process
        process.kill()


def test_a_shell_ends_as_it_is_told(shell: subprocess.Popen[bytes], listener: socket.socket) -> None:
    leash, _ = listener.accept()
    with leash:
        leash.send(b"\x07")
        assert shell.wait(10) == 7


def test_a_shell_ends_when_nobody_tells(shell: subprocess.Popen[bytes], listener: socket.socket) -> None:
    leash, _ = listener.accept()
    leash.close()
    assert shell.wait(10) == 128 + signal.SIGKILL


def test_a_shell_says_that_it_is_to_stop(shell: subprocess.Popen[bytes], listener: socket.socket) -> None:
    leash, _ = listener.accept()
    with leash:
        leash.settimeout(10)
        for _ in range(2):
            shell.terminate()
            assert leash.recv(16) == b"T"
        leash.send(b"\x05")
        assert shell.wait(10) == 5


def test_a_shell_without_a_gate(tmp_path: Path) -> None:
    program = tmp_path / "shell"
    program.write_bytes(executable(SHELL))
    program.chmod(0o755)
    assert not Path(os.fsdecode(GATE)).exists()
    assert subprocess.run([program], timeout=10, check=False).returncode == 70


@pytest.mark.parametrize("program", [PAUSE, SHELL])
def test_for_another_processor(program: dict[str, bytes]) -> None:
    made = executable(program, "aarch64")
    assert made[18:20] == (183).to_bytes(2, "little")
    assert made.endswith(program["aarch64"])


def test_for_an_unknown_processor() -> None:
    with pytest.raises(EngineUnavailable, match=r"no programs of Aircell's for riscv64.*x86_64 and aarch64"):
        executable(PAUSE, "riscv64")
