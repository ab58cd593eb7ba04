"""aircelld as a process and as a server: one per folder, its socket, its clients, its log, its end."""

from __future__ import annotations

import grp
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aircell import protocol
from aircell.client import Client
from aircell.errors import DaemonUnavailable, EngineUnavailable, InvalidSpec, NotFound, from_wire
from aircell.status import ExitStatus
from tests.support.jobs import request, text
from tests.support.node import Node, run

AIRCELLD = (sys.executable, "-m", "aircell.daemon.main")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Pytest's own gets too long for a unix socket once it has counted to 100."""
    with tempfile.TemporaryDirectory(prefix="ac", dir="/tmp") as folder:
        yield Path(folder)


def aircelld(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs one that is expected to end by itself."""
    return subprocess.run([*AIRCELLD, *arguments], capture_output=True, text=True, timeout=60, check=False)


def connected(node: Node) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(20)
    sock.connect(node.socket)
    return sock


def open_descriptors(node: Node) -> int:
    return len(list(Path(f"/proc/{node.pid}/fd").iterdir()))


def test_hello_says_who_answers_on_which_engine(node: Node) -> None:
    answer = node.answer("hello")
    assert answer["pid"] == node.pid
    assert answer["backends"]["cri"]["name"] == "containerd"
    assert "runc" in answer["backends"]["cri"]["runtime_handlers"]


def test_the_socket_is_for_root_and_its_group(node: Node) -> None:
    assert stat.S_IMODE(Path(node.socket).stat().st_mode) == 0o660
    with node.configured(socket_group="daemon", policy={"worker_mounts": ["/srv"]}):
        assert Path(node.socket).stat().st_gid == grp.getgrnam("daemon").gr_gid
    assert stat.S_IMODE((node.state / "sandboxes").stat().st_mode) == 0o700


def test_a_second_aircelld_leaves_the_first_alone(node: Node) -> None:
    done = aircelld("--config", str(node.root / "aircelld.yaml"))
    assert done.returncode == 69
    assert "another aircelld has the state folder" in done.stderr
    assert node.answer("hello")["pid"] == node.pid


def test_a_socket_that_somebody_listens_on_is_not_taken(node: Node, tmp_path: Path) -> None:
    done = aircelld("--socket", node.socket, "--state-dir", str(tmp_path))
    assert done.returncode == 69
    assert f"another aircelld listens on {node.socket}" in done.stderr


def test_a_mistake_in_the_configuration_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("backends: {moon: {}}\nstate_dir: " + str(tmp_path) + "\n")
    done = aircelld("--config", str(file))
    assert done.returncode == 78
    assert "no backend 'moon' is installed; installed: cri" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_engine_that_is_down_fails_the_launch_and_says_what_to_do(short_path: Path) -> None:
    address = str(short_path / "a.sock")
    file = short_path / "c.yaml"
    file.write_text(f"backends: {{cri: {{socket: {short_path}/no.sock}}}}\n")
    with subprocess.Popen(
        [*AIRCELLD, "--config", str(file), "--socket", address, "--state-dir", str(short_path / "s")]
    ) as daemon:
        client = Client(address)
        try:
            deadline = time.monotonic() + 20
            while not Path(address).exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            with client.launch(request("true")) as sandbox, pytest.raises(EngineUnavailable) as caught:
                sandbox.wait(30)
            assert caught.value.hint
            assert "no.sock" in str(caught.value)
            assert next(client.call("hello"))["backends"]["cri"]["error"]["kind"] == "EngineUnavailable"
        finally:
            daemon.terminate()


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xff\xff\xff",
        protocol.encode({"op": "moon"}),
        protocol.encode({"op": "ps", "moon": 1}),
        protocol.encode({"op": ["ps"]}),
        protocol.encode({"op": "launch", "request": {"spec": {}}}),
        protocol.encode({"op": "launch", "request": request("true")}),
        b"\x00\x00\x00\x02[]",
        b"\x00\x00\x00\x02{{",
    ],
)
def test_garbage_is_answered_with_an_error_and_harms_nobody(node: Node, frame: bytes) -> None:
    with connected(node) as sock:
        sock.sendall(frame)
        answer = protocol.receive(sock)
    assert answer is not None
    assert isinstance(from_wire(answer[0]["error"]), InvalidSpec)
    assert node.answer("hello")["ok"]


def test_a_lifeline_must_be_one(node: Node) -> None:
    for bad in (os.open("/dev/null", os.O_RDONLY), socket.socketpair()[0].detach()):
        with connected(node) as sock:
            protocol.send(sock, {"op": "launch", "request": request("true")}, [bad] * 5)
            answer = protocol.receive(sock)
        os.close(bad)
        assert answer is not None
        assert "lifeline" in answer[0]["error"]["message"]


def test_descriptors_never_leak(node: Node) -> None:
    before = open_descriptors(node)
    null = os.open("/dev/null", os.O_RDONLY)
    for _ in range(5):
        with connected(node) as sock:  # too few, and for an operation that wants none
            protocol.send(sock, {"op": "launch", "request": request("true")}, [null] * 3)
            protocol.receive(sock)
        with connected(node) as sock:
            protocol.send(sock, {"op": "ps"}, [null] * 5)
            protocol.receive(sock)
        with connected(node) as sock:  # half a request
            socket.send_fds(sock, [protocol.encode({"op": "ps"})[:6]], [null] * 5)
        with pytest.raises(InvalidSpec), node.client.launch(request("true", mounts=[{"source": "/x", "target": "/y"}])):
            pass
        with node.launch("true", image="localhost/no/such:image", pull_policy="never"):
            pass
        with node.launch("true") as sandbox:
            assert sandbox.wait(30) == ExitStatus(code=0)
    os.close(null)
    node.wait_until(lambda: open_descriptors(node) <= before, "every descriptor is closed")


def test_a_client_that_reads_nothing_delays_nobody(node: Node) -> None:
    stalled = connected(node)
    with stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        protocol.send(stalled, {"op": "hello"})
        began = time.monotonic()
        assert node.answer("ps")["ok"]
        assert time.monotonic() - began < 1


def test_a_connection_carries_one_request(node: Node) -> None:
    with connected(node) as sock, node.launch("sleep", "60") as sandbox:
        node.wait_state(sandbox.id, "running")
        protocol.send(sock, {"op": "stop", "sandbox": sandbox.id, "grace": 5})
        protocol.send(sock, {"op": "ps"})
        answer = protocol.receive(sock)
        assert answer is not None
        assert "one request" in answer[0]["error"]["message"]


def test_the_events_are_lost_with_the_connection_and_nothing_else(node: Node) -> None:
    with node.launch("sh", "-c", "cat; exit 4") as sandbox:
        sandbox.events.close()
        sandbox._open.discard(sandbox.events)
        sandbox.requests.sendall(b"hello")
        sandbox.requests.close()
        assert text(sandbox.stdout) == "hello"
        assert sandbox.wait(20) == ExitStatus(code=4)


def test_ps_inspect_and_logs_show_a_sandbox_without_its_secrets(node: Node) -> None:
    with node.launch("sleep", "60", env={"TOKEN": "hush-hush"}) as sandbox:
        node.wait_state(sandbox.id, "running")
        (row,) = node.ps()
        assert (row["id"], row["role"], row["owner"]["pid"]) == (sandbox.id, "run", os.getpid())
        assert row["labels"]["aircell.dev/test"] == "1"
        details = node.inspect(sandbox.id[:8])
        assert details["spec"]["env"] == {"TOKEN": ""}
        assert "hush-hush" not in json.dumps(details)
        assert "hush-hush" not in (node.state / "sandboxes" / sandbox.id / "sandbox.json").read_text()
        assert node.answer("logs", sandbox=sandbox.id) == {"ok": True, "log": ""}
    with pytest.raises(NotFound, match="no sandbox has an id that begins with 'moon'"):
        node.answer("inspect", sandbox="moon")
    with pytest.raises(NotFound):
        node.answer("inspect", sandbox="")


def test_stop_ends_a_running_job_and_may_be_asked_again(node: Node) -> None:
    with node.launch("sleep", "60") as sandbox:
        node.wait_state(sandbox.id, "running")
        assert node.answer("stop", sandbox=sandbox.id, grace=5) == {"ok": True}
        assert node.traces() == {}
        assert sandbox.wait(5).signal == signal.SIGTERM
        assert node.answer("stop", sandbox=sandbox.id) == {"ok": True}


def test_many_clients_at_once(node: Node) -> None:
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(node.answer("ps")["ok"])) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 100


def test_it_tells_systemd_and_ends_when_idle_and_logs_json(short_path: Path) -> None:
    address = short_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(address))
        systemd.settimeout(20)
        arguments = ["--socket", str(short_path / "a.sock"), "--state-dir", str(short_path / "s"), "--idle-exit", "0.2"]
        done = subprocess.run(
            [*AIRCELLD, *arguments, "--log-format", "json"],
            env={**os.environ, "NOTIFY_SOCKET": str(address)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert [systemd.recv(100), systemd.recv(100)] == [b"READY=1", b"STOPPING=1"]
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert "idle for 0.2 s" in [line["message"] for line in lines]
    assert {"time", "level", "logger", "message"} == set(lines[-1])
    assert not (short_path / "a.sock").exists()


def test_it_does_not_end_for_idleness_while_a_job_runs(node: Node) -> None:
    with node.configured(idle_exit=0.3):
        with node.launch("sleep", "2") as sandbox:
            sandbox.events.close()
            sandbox._open.discard(sandbox.events)
            assert sandbox.wait(30) == ExitStatus(code=0)
        node.wait_until(lambda: not Path(node.socket).exists(), "it ends once the job has ended")


def test_autostart_by_many_at_once_makes_one(short_path: Path) -> None:
    address = str(short_path / "a.sock")
    command = [*AIRCELLD, "--socket", address, "--state-dir", str(short_path / "s"), "--idle-exit", "1"]
    pids: list[int] = []

    def hello() -> None:
        pids.append(next(Client(address, autostart=command).call("hello"))["pid"])

    threads = [threading.Thread(target=hello) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 5
    assert len(set(pids)) == 1


def test_sigterm_leaves_running_jobs_and_cancels_the_rest(node: Node, hangs: dict[str, Any]) -> None:
    with node.launch("sh", "-c", "cat; exit 5") as running, node.launch("true", **hangs) as starting:
        node.wait_until(lambda: [box["state"] for box in node.ps()] == ["running", "starting"], "one runs")
        assert node.stop() == 0
        with pytest.raises(DaemonUnavailable):
            starting.wait(10)
        running.requests.sendall(b"still here")
        running.requests.close()
        assert text(running.stdout) == "still here"
        assert running.wait(10) == ExitStatus(code=5)
        node.start()


def test_an_engine_on_which_a_kubelet_has_sandboxes_is_refused(node: Node, short_path: Path) -> None:
    """The kubelet's mark is its label; any sandbox on the engine that carries it counts."""
    pod = short_path / "pod.py"
    pod.write_text(
        "import sys, grpc\n"
        "from aircell_cri.v1 import api_pb2 as cri, api_pb2_grpc as rpc\n"
        "runtime = rpc.RuntimeServiceStub(grpc.insecure_channel('unix://' + sys.argv[1]))\n"
        "metadata = cri.PodSandboxMetadata(name='web', namespace='default', uid='1')\n"
        "linux = cri.LinuxPodSandboxConfig(cgroup_parent=sys.argv[2])\n"
        "config = cri.PodSandboxConfig(metadata=metadata, linux=linux, labels={'io.kubernetes.pod.uid': '1'})\n"
        "print(runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config, runtime_handler='runc-none'))"
        ".pod_sandbox_id)\n"
    )
    group = node.config["backends"]["cri"]["cgroup_parent"]
    id = run(sys.executable, str(pod), node.containerd_socket, group).strip()
    try:
        settings = {"socket": node.containerd_socket}
        file = short_path / "c.yaml"
        file.write_text(json.dumps({"backends": {"cri": settings}, "socket_path": str(short_path / "a.sock")}))
        done = aircelld("--config", str(file), "--state-dir", str(short_path / "s"))
        assert done.returncode == 69
        assert "a kubelet (it has the pod default/web here) manages the sandboxes" in done.stderr
        file.write_text(
            json.dumps(
                {"backends": {"cri": settings}, "socket_path": str(short_path / "a.sock"), "beside_kubelet": True}
            )
        )
        allowed = aircelld("--config", str(file), "--state-dir", str(short_path / "s"), "--idle-exit", "0.1")
        assert allowed.returncode == 0
    finally:
        pod.write_text(
            "import sys, grpc\n"
            "from aircell_cri.v1 import api_pb2 as cri, api_pb2_grpc as rpc\n"
            "runtime = rpc.RuntimeServiceStub(grpc.insecure_channel('unix://' + sys.argv[1]))\n"
            "runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=sys.argv[2]))\n"
            "runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=sys.argv[2]))\n"
        )
        run(sys.executable, str(pod), node.containerd_socket, id)
