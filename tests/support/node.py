"""A node of its own for tests: a real aircelld with a real containerd, in a folder that is gone afterwards.

Plugin of pytest: the fixture ``node`` is one for the whole session, ``new_node`` makes more.
``AIRCELL_TEST_CONTAINERD`` names another containerd binary.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import yaml

from aircell.client import Client, Sandbox
from aircell.errors import AircellError, DaemonUnavailable
from tests.support.images import archive, reference
from tests.support.jobs import request

E = TypeVar("E", bound=AircellError)

START_SECONDS = 60.0
CGROUPS = Path("/sys/fs/cgroup")


class Node:
    """aircelld in a process of its own. ``config`` may be changed; the next start reads it."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or Path(tempfile.mkdtemp(prefix="ac", dir="/tmp"))
        self.root.chmod(0o711)  # user 0 of a pod's user namespace must get through, and is nobody here
        self.tag = self.root.name
        self.socket = str(self.root / "a.sock")
        self.state = self.root / "s"
        self.containerd_socket = str(self.root / "r" / "containerd" / "containerd.sock")
        self.log = self.root / "aircelld.log"
        self.pip_conf = self.root / "pip.conf"
        """pip's configuration where aircelld runs; may be written at any time."""
        self.bridge = self.tag[:15]
        self.config: dict[str, Any] = {
            "socket_path": self.socket,
            "state_dir": str(self.state),
            "run_dir": str(self.root / "r"),
            "managed_containerd": True,
            "containerd": {
                "bridge": self.bridge,
                "subnet": f"10.{secrets.randbelow(100) + 100}.{secrets.randbelow(256)}.0/24",
                "registry_hosts": str(self.root / "registries"),
                "binary": os.environ.get("AIRCELL_TEST_CONTAINERD", "containerd"),
            },
            "backends": {"cri": {"cgroup_parent": f"/{self.tag}"}},
            "log": {"level": "debug"},
        }
        self._process: psutil.Process | None = None
        self._loaded: set[str] = set()

    @classmethod
    def beside(cls, node: Node, root: Path) -> Node:
        """Another aircelld on the engine of ``node``."""
        other = cls(root)
        settings = {"socket": node.containerd_socket, "cgroup_parent": f"/{node.tag}"}
        other.config |= {"managed_containerd": False, "containerd": {}, "backends": {"cri": settings}}
        return other

    # --- the daemon's process ---

    @property
    def alive(self) -> bool:
        process = self._process
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE

    @property
    def pid(self) -> int:
        """aircelld's."""
        assert self._process is not None
        return self._process.pid

    def start(self, *, on_first_use: bool = False) -> None:
        """Returns once aircelld answers: started here, or by a client's first request."""
        file = self.root / "aircelld.yaml"
        file.write_text(yaml.safe_dump(self.config))
        daemon = [sys.executable, "-m", "aircell.daemon.main", "--config", str(file)]
        argv = ["setpriv", "--pdeathsig", "TERM", *daemon]
        if on_first_use:
            self._process = psutil.Process(Client(self.socket, autostart=argv).ask("hello")["pid"])
            return
        with self.log.open("ab") as log:
            self._process = psutil.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", env=self._environment()
            )
        self.wait_until(self._answers, "aircelld answers", START_SECONDS)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL. containerd ends, too, or goes on: nobody waits for it."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def containerd_pid(self) -> int:
        """Of the containerd that aircelld runs; raises LookupError when there is none."""
        for pid, command in processes():
            if Path(command[0]).name == "containerd" and any(str(self.root) in word for word in command):
                return pid
        raise LookupError("no containerd runs on this node")

    def agent_pid(self, sandbox: str) -> int:
        """Of the process that is PID 1 in a sandbox, as soon as there is one."""
        self.wait_until(lambda: self._agents(sandbox), f"an agent runs in {sandbox}")
        return self._agents(sandbox)[0]

    def _agents(self, sandbox: str) -> list[int]:
        found = []
        for pid, command in processes():
            with contextlib.suppress(OSError):
                mounts = Path(f"/proc/{pid}/mountinfo").read_text()
                first = "\t1\n" in Path(f"/proc/{pid}/status").read_text().partition("NSpid:")[2]
                programs = {"/run/aircell/agent.py", "/run/aircell/zygote.py"}  # the second of a fork
                if first and programs.intersection(command) and f"/sandboxes/{sandbox}/run " in mounts:
                    found.append(pid)
        return found

    @contextlib.contextmanager
    def configured(self, **changes: Any) -> Iterator[None]:
        """Runs aircelld with other settings for a while."""
        before = dict(self.config)
        self.config.update(changes)
        self.restart()
        try:
            yield
        finally:
            self.config = before
            self.restart()

    # --- what it serves ---

    @property
    def client(self) -> Client:
        return Client(self.socket)

    def load(self, name: str) -> str:
        """Makes a test image available; returns what engines call it."""
        if name not in self._loaded:
            self.ctr("images", "import", str(archive(name)))
            self.wait_until(lambda: reference(name) in self.images(), f"the engine sees the image {name}")
            self._loaded.add(name)
        return reference(name)

    def allow_plain_http(self, registry: str) -> None:
        """Newer containerds ask for it even on the loopback interface."""
        folder = self.root / "registries" / registry
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts.toml").write_text(f'server = "http://{registry}"\n')

    def trust(self, registry: str, authority: Path) -> None:
        """A registry whose certificate only ``authority`` vouches for."""
        self.serve_at(registry, f"https://{registry}", f'ca = "{authority}"\n')

    def serve_at(self, registry: str, url: str, settings: str = "") -> None:
        """A registry that is elsewhere than its name says, or has settings of its own."""
        folder = self.root / "registries" / registry
        folder.mkdir(parents=True, exist_ok=True)
        # containerd 1.6 reads no file without a host in it.
        (folder / "hosts.toml").write_text(f'server = "{url}"\n{settings}[host."{url}"]\n{settings}')

    def launch(self, *argv: str, **spec: Any) -> Sandbox:
        """Launches a command; see :func:`request`."""
        return self.client.launch(request(*argv, **spec))

    def failure(self, kind: type[E], **launch: Any) -> E:
        """The error of a launch whose command never runs."""
        with self.launch("true", **launch) as sandbox, pytest.raises(kind) as caught:
            sandbox.wait(60)
        assert caught.value.sandbox == sandbox.id
        return caught.value

    def ps(self, **fields: Any) -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = self.answer("ps", **fields)["sandboxes"]
        return answer

    def inspect(self, sandbox: str) -> dict[str, Any]:
        """All that is known of a sandbox, also when it has ended."""
        found: dict[str, Any] = self.answer("inspect", sandbox=sandbox)["sandbox"]
        return found

    def pools(self) -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = self.answer("pools")["pools"]
        return answer

    def history(self, sandbox: str) -> list[dict[str, Any]]:
        """Every event of a sandbox, also when it has ended."""
        found: list[dict[str, Any]] = self.inspect(sandbox)["events"]
        return found

    def engine_answers(self) -> bool:
        return "error" not in self.answer("hello")["backends"]["cri"]

    def wait_state(self, sandbox: str, state: str) -> None:
        """Returns once the sandbox is in that state."""
        self.wait_until(lambda: self.history(sandbox)[-1]["event"] == state, f"{sandbox} is {state}")

    def answer(self, op: str, **fields: Any) -> dict[str, Any]:
        """The first answer to one request."""
        answers = self.client.call(op, **fields)
        try:
            return next(answers)
        finally:
            answers.close()

    @property
    def gateway(self) -> str:
        """This machine's address on the network ``pod``."""
        subnet: str = self.config["containerd"]["subnet"]
        return subnet.replace(".0/24", ".1")

    def _environment(self) -> dict[str, str]:
        """aircelld's, with a configuration of pip that is the tests' own."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        return {**ours, "PIP_CONFIG_FILE": str(self.pip_conf)}

    def images(self) -> set[str]:
        """What engines call those that there are."""
        return {tag for image in self.answer("images")["images"] for tag in image["tags"]}

    def _answers(self) -> bool:
        assert self.alive, f"aircelld ended:\n{self.log.read_text()[-3000:]}"
        try:
            self.answer("ps")
        except DaemonUnavailable:
            return False
        return True

    # --- what is left of it ---

    def traces(self) -> dict[str, list[str]]:
        """Everything of any sandbox that exists on this node; empty when there is none."""
        interfaces = run("ip", "-o", "link", "show", "master", self.bridge, check=False)
        found = {
            "containers": self.ctr("containers", "list", "-q").split(),
            "snapshots": [line for line in self.ctr("snapshots", "list").splitlines() if "Active" in line.split()],
            "mounts": self.mounts(),
            "cgroups": [str(path) for path in self._groups("*/")],
            "folders": [path.name for path in (self.state / "sandboxes").iterdir()],
            "addresses": [path.name for path in (self.root / "r").glob("containerd/addresses/*/[0-9]*")],
            "interfaces": interfaces.splitlines(),
            "shims": [" ".join(command) for _, command in processes() if self._is_shim(command)],
        }
        return {kind: traces for kind, traces in found.items() if traces}

    def clean(self, seconds: float = 30.0) -> None:
        """Fails unless within ``seconds`` nothing of any sandbox is left, once no more are kept ready."""
        with contextlib.suppress(TimeoutError):
            self.wait_until(lambda: not self._drained(), "nothing is left", seconds)
        assert self.traces() == {}, f"left; aircelld said:\n{self.log.read_text()[-6000:]}"

    def _drained(self) -> dict[str, list[str]]:
        if self.alive:
            self.answer("drain")
        left = self.traces()
        if left.keys() == {"snapshots"}:
            self._collect_garbage()
            left = self.traces()
        return left

    def _collect_garbage(self) -> None:
        """Brings a day forward: for so long a containerd that was killed while it created a container keeps that one's
        snapshot, by a lease, from its own collector (containerd, ``client/lease.go``)."""
        self.ctr("leases", "create")
        for lease in self.ctr("leases", "list", "-q").split():
            self.ctr("leases", "delete", "--sync", lease)

    def mounts(self) -> list[str]:
        """Mount points on this node's folder."""
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return [point for point in points if Path(point).is_relative_to(self.root)]

    def engine_commands(self) -> list[str]:
        """What lists the sandboxes as the engine has them, on this machine."""
        crictl = [f"crictl --runtime-endpoint unix://{self.containerd_socket} pods"] if shutil.which("crictl") else []
        return [*crictl, f"ctr --address {self.containerd_socket} --namespace k8s.io containers list"]

    def ctr(self, *arguments: str) -> str:
        binary = Path(self.config["containerd"]["binary"])
        ctr = str(binary.with_name("ctr")) if binary.is_absolute() else "ctr"
        return run(ctr, "--address", self.containerd_socket, "--namespace", "k8s.io", *arguments)

    def wait_until(self, condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {seconds:g} s: {what}")
            time.sleep(0.02)

    def close(self) -> None:
        """Ends everything, and says so when a test left something behind that aircelld cannot remove."""
        try:
            if not self.alive:
                self.start()
            for sandbox in self.ps():
                self.answer("stop", sandbox=sandbox["id"], grace=0)
            self.clean()
        finally:
            if self.alive:
                self.stop()
            for point in reversed(self.mounts()):
                run("umount", "--lazy", point, check=False)
            run("ip", "link", "delete", self.bridge, check=False)
            for group in sorted(self._groups("**/"), reverse=True):
                group.rmdir()
            shutil.rmtree(self.root, ignore_errors=True)  # what was left behind may be going at last

    def cpu_weights(self) -> set[int]:
        """Of the control groups of sandboxes, with which they compete with each other: in ``cpu.shares`` on cgroup v1,
        and in ``cpu.weight`` on v2."""
        found: set[int] = set()
        for group in self._groups("*/"):
            for name in ("cpu.shares", "cpu.weight"):
                with contextlib.suppress(OSError):  # has none, or has just been removed
                    found.add(int((group / name).read_text()))
        return found

    def _end(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(START_SECONDS)

    def _groups(self, below: str) -> list[Path]:
        """Control groups of this node's sandboxes, on cgroup v2 and in each hierarchy of v1."""
        return [*CGROUPS.glob(f"{self.tag}/{below}"), *CGROUPS.glob(f"*/{self.tag}/{below}")]

    def _is_shim(self, command: Sequence[str]) -> bool:
        return Path(command[0]).name.startswith("containerd-shim") and self.containerd_socket in command


def processes() -> Iterator[tuple[int, list[str]]]:
    """Every process with a command line."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if command[0]:
                    yield int(folder.name), command


def run(*argv: str, check: bool = True) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"{argv} failed: {done.stderr}"
    return done.stdout


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Like ``tmp_path``, where a unix socket's path has room."""
    with tempfile.TemporaryDirectory(prefix="ac", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def hangs(tmp_path: Path) -> dict[str, Any]:
    """For a launch whose interpreter never gets as far as the agent."""
    (tmp_path / "sitecustomize.py").write_text("import time\ntime.sleep(600)\n")
    tmp_path.chmod(0o755)
    return {"env": {"PYTHONPATH": "/hangs"}, "mounts": [{"source": str(tmp_path), "target": "/hangs"}]}


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """A node with the image ``base``, for all tests."""
    with running() as node:
        yield node


@pytest.fixture
def new_node() -> Iterator[Node]:
    """A node with the image ``base``, for one test alone."""
    with running() as node:
        yield node


@contextlib.contextmanager
def running(containerd: str = "") -> Iterator[Node]:
    """A node with the image ``base``; ``containerd`` is another binary than usual."""
    node = Node()
    if containerd:
        node.config["containerd"]["binary"] = containerd
    try:
        node.start()
        node.load("base")
        yield node
    finally:
        node.close()
