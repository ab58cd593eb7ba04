"""The client against a socket that answers as aircelld does, and as a dying one would."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aircell import errors, sandbox
from aircell.autostart import daemon_environment
from aircell.client import Client
from aircell.status import ExitStatus
from tests.support.aircelld import Peer, serve

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, for socket paths."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.fixture
def answer(folder: Path) -> Iterator[Callable[[Callable[[Peer], None]], Client]]:
    """Makes a client whose one request is answered by the given script."""
    threads = []

    def made(script: Callable[[Peer], None]) -> Client:
        threads.append(serve(folder / "s", script))
        return Client(str(folder / "s"), timeout=2)

    yield made
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def open_descriptors() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


def comes_back_to(before: set[Path]) -> bool:
    """Whether no descriptor is left but those; the server, a thread of this process, closes its own a moment later."""
    deadline = time.monotonic() + 5
    while not open_descriptors() <= before:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def accept(peer: Peer) -> None:
    peer.say(ok=True, sandbox="s1")


# --- calls


def test_answers_come_one_by_one(answer: Callable[..., Client]) -> None:
    def script(peer: Peer) -> None:
        assert peer.request == {"op": "pull", "image": "x"}
        peer.say(ok=True)
        peer.say(event="pulling", done=1)
        peer.say(image={"id": "y"})

    answers = answer(script).call("pull", image="x")
    assert list(answers) == [{"ok": True}, {"event": "pulling", "done": 1}, {"image": {"id": "y"}}]


def test_an_error_in_any_answer_is_raised(answer: Callable[..., Client]) -> None:
    refusal = errors.RefusedByPolicy("no", hint="ask")

    def script(peer: Peer) -> None:
        peer.say(ok=True)
        peer.say(error=refusal.to_wire())

    answers = answer(script).call("pull")
    assert next(answers) == {"ok": True}
    with pytest.raises(errors.RefusedByPolicy, match="no ask"):
        next(answers)


# --- nobody answers


def test_no_socket(folder: Path) -> None:
    with pytest.raises(errors.DaemonUnavailable, match=r"There is no aircelld socket at .*Start `aircelld`"):
        list(Client(str(folder / "s")).call("hello"))


def test_a_socket_that_a_dead_aircelld_left(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
    with pytest.raises(errors.DaemonUnavailable, match=r"Nobody listens on .*its log says why"):
        list(Client(str(folder / "s")).call("hello"))


def test_a_socket_of_another_group(folder: Path) -> None:
    folder.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        (folder / "s").chmod(0o660)
        os.chown(folder / "s", 0, 4)
        listener.listen()
        os.seteuid(65534)
        try:
            with pytest.raises(errors.DaemonUnavailable, match=r"may not open .*Add the user to group adm "):
                list(Client(str(folder / "s")).call("hello"))
        finally:
            os.seteuid(0)


def test_an_aircelld_that_takes_the_request_and_never_answers(answer: Callable[..., Client]) -> None:
    end = threading.Event()
    client = answer(lambda peer: end.wait(5))
    client.timeout = 0.1
    with pytest.raises(errors.DaemonUnavailable, match=r"did not answer within 0\.1 s"):
        list(client.call("hello"))
    end.set()


def test_an_aircelld_that_hangs_up(answer: Callable[..., Client]) -> None:
    with pytest.raises(errors.DaemonUnavailable, match="hung up"):
        list(answer(lambda peer: None).call("hello"))


def test_a_full_backlog_is_waited_for(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(folder / "s"))
        listener.listen(0)
        first.connect(str(folder / "s"))
        client = Client(str(folder / "s"), timeout=0.2)
        with pytest.raises(errors.DaemonUnavailable, match="does not accept connections"):
            list(client.call("hello"))

        def make_room() -> None:
            listener.accept()[0].close()
            connection, _ = listener.accept()
            Peer(connection).say(ok=True)
            connection.close()

        client.timeout = 5
        timer = threading.Timer(0.2, make_room)
        timer.start()
        assert list(client.call("hello")) == [{"ok": True}]
        timer.join()


# --- launches


def test_a_launch_passes_the_other_ends_and_keeps_none(answer: Callable[..., Client]) -> None:
    def script(peer: Peer) -> None:
        assert peer.request == {"op": "launch", "request": {"backend": "cri"}}
        accept(peer)
        assert [end.type for end in peer.ends.values()] == [socket.SOCK_STREAM] * 4 + [socket.SOCK_SEQPACKET]
        for name in ("stdout", "stderr", "logs"):
            peer.ends[name].sendall(name.encode())
        peer.ends["stdout"].sendall(peer.ends["requests"].recv(10))

    with answer(script).launch({"backend": "cri"}) as job:
        assert job.id == "s1"
        job.requests.sendall(b"!")
        ours = (job.requests, job.stdout, job.stderr, job.logs, job.lifeline, job.events)
        assert all(fcntl.fcntl(sock, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for sock in ours)
        heard = {name: getattr(job, name).makefile("rb").read() for name in ("stdout", "stderr", "logs")}
        assert heard == {"stdout": b"stdout!", "stderr": b"stderr", "logs": b"logs"}


def test_a_refused_launch_leaves_no_descriptor(answer: Callable[..., Client]) -> None:
    client = answer(lambda peer: peer.say(error=errors.RefusedByPolicy("no").to_wire()))
    before = open_descriptors()
    with pytest.raises(errors.RefusedByPolicy, match="no"):
        client.launch({})
    assert comes_back_to(before)


def test_a_closed_sandbox_leaves_no_descriptor(answer: Callable[..., Client]) -> None:
    client = answer(accept)
    before = open_descriptors()
    job = client.launch({})
    job.close()
    job.close()
    assert comes_back_to(before)


EXITED = {"code": 3, "signal": None, "oom_killed": False, "reason": ""}


def test_the_agent_s_word_on_the_exit(answer: Callable[..., Client]) -> None:
    done = threading.Event()

    def script(peer: Peer) -> None:
        accept(peer)
        peer.packet(type="ready", facts={"python": "3.11"})
        peer.packet(type="started", pid=2)
        peer.packet(type="exited", exit=EXITED)
        done.wait(5)

    with answer(script).launch({}) as job:
        assert not job.finished
        assert job.wait(5) == ExitStatus(code=3)
        assert job.finished
        assert (job.facts, job.error) == ({"python": "3.11"}, None)
        assert job.wait(0) == ExitStatus(code=3)
        done.set()


@pytest.mark.parametrize("event_first", [False, True])
def test_the_engine_s_word_when_the_agent_was_killed(answer: Callable[..., Client], event_first: bool) -> None:
    def script(peer: Peer) -> None:
        accept(peer)
        peer.say(event="running", at=1.0)
        if not event_first:
            peer.end_job()
        peer.say(event="exited", at=2.0, exit={"code": None, "signal": 9, "oom_killed": True, "reason": "memory"})

    with answer(script).launch({}) as job:
        assert job.wait(5) == ExitStatus(signal=9, oom_killed=True, reason="memory")


def test_a_job_that_nobody_can_account_for(answer: Callable[..., Client]) -> None:
    def script(peer: Peer) -> None:
        accept(peer)
        peer.packet(type="ready", facts={})

    with answer(script).launch({}) as job:
        exit = job.wait(5)
        assert (exit.code, exit.signal, exit.returncode) == (None, None, -9)
        assert "lost" in exit.reason


def test_a_silent_aircelld_is_not_waited_for_for_ever(
    answer: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "SETTLE_SECONDS", 0.2)
    end = threading.Event()

    def script(peer: Peer) -> None:
        accept(peer)
        peer.packet(type="ready", facts={})
        peer.end_job()
        end.wait(5)

    with answer(script).launch({}) as job:
        assert "lost" in job.wait(5).reason
        end.set()


def test_a_launch_that_fails_later(answer: Callable[..., Client]) -> None:
    def script(peer: Peer) -> None:
        accept(peer)
        peer.say(event="pulling", at=1.0, image="x", done=0, total=0)
        peer.end_job()
        peer.say(event="failed", at=2.0, error=errors.ImageNotFound("no such image", hint="build it").to_wire())

    with answer(script).launch({}) as job:
        with pytest.raises(errors.ImageNotFound, match="sandbox s1: no such image build it"):
            job.wait(5)
        assert isinstance(job.error, errors.ImageNotFound)
        assert job.exit is None


def test_an_aircelld_that_dies_before_the_job_started(answer: Callable[..., Client]) -> None:
    with answer(accept).launch({}) as job, pytest.raises(errors.SandboxLost, match=r"before the job.*try it again"):
        job.wait(5)


def test_waiting_has_an_end(answer: Callable[..., Client]) -> None:
    end = threading.Event()

    def script(peer: Peer) -> None:
        accept(peer)
        end.wait(5)

    with answer(script).launch({}) as job:
        with pytest.raises(TimeoutError, match="sandbox s1 still runs"):
            job.wait(0.05)
        end.set()


def test_signals_go_down_the_lifeline_until_the_end(answer: Callable[..., Client]) -> None:
    heard: list[bytes] = []

    def script(peer: Peer) -> None:
        accept(peer)
        heard.append(peer.ends["lifeline"].recv(100))
        peer.packet(type="exited", exit=EXITED)

    with answer(script).launch({}) as job:
        job.signal(15)
        job.wait(5)
        job.signal(9)
    assert heard == [b'{"type": "signal", "signal": 15}']


@pytest.mark.parametrize(
    "packet",
    [
        b"\xff",
        b"[]",
        b"7",
        b'{"type": []}',
        b'{"type": "exited"}',
        b'{"type": "exited", "exit": {"code": "0"}}',
        b'{"type": "exited", "exit": {"code": true}}',
        b'{"type": "ready", "facts": 1}',
        b"[" * 60000,
    ],
)
def test_what_a_sandbox_may_not_say_is_ignored(answer: Callable[..., Client], packet: bytes) -> None:
    def script(peer: Peer) -> None:
        accept(peer)
        peer.ends["lifeline"].send(packet)
        peer.packet(type="exited", exit=EXITED)

    with answer(script).launch({}) as job:
        assert job.wait(5) == ExitStatus(code=3)


# --- autostart

DAEMON = """
import os, socket, sys
from pathlib import Path
from aircell import protocol
path = Path(sys.argv[1])
with open(path.with_name("started"), "a") as file:
    print(os.getpid(), os.getsid(0), sorted(os.environ), file=file)
listener = socket.socket(socket.AF_UNIX)
listener.bind(str(path))
listener.listen()
for _ in range(int(sys.argv[2])):
    connection, _ = listener.accept()
    with connection:
        if protocol.receive(connection):
            protocol.send(connection, {"ok": True})
"""


def test_of_many_at_once_one_starts_the_daemon(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "secret")
    monkeypatch.setenv("AIRCELL_CONFIG", "kept")
    (folder / "daemon.py").write_text(DAEMON)
    path = folder / "new" / "s"
    argv = [sys.executable, str(folder / "daemon.py"), str(path), "8"]
    answers: list[Any] = []

    def call() -> None:
        answers.extend(Client(str(path), autostart=argv).call("hello"))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [{"ok": True}] * 8
    started = (path.parent / "started").read_text().splitlines()
    assert len(started) == 1, "one daemon for all"
    pid, session, environment = started[0].split(" ", 2)
    assert pid == session, "the daemon outlives its worker's terminal and process group"
    assert "AIRCELL_CONFIG" in environment
    assert "AIRFLOW" not in environment


def test_a_daemon_that_ends_at_once_is_reported_with_its_log(folder: Path) -> None:
    argv = ["sh", "-c", "echo no root >&2; exit 69"]
    with pytest.raises(errors.DaemonUnavailable, match=r"ended at once with code 69.*aircelld\.log") as raised:
        list(Client(str(folder / "s"), autostart=argv).call("hello"))
    assert raised.value.detail == "no root\n"


def test_a_daemon_that_does_not_exist(folder: Path) -> None:
    with pytest.raises(errors.DaemonUnavailable, match="cannot be started"):
        list(Client(str(folder / "s"), autostart=["/no/such/aircelld"]).call("hello"))


def test_a_daemon_gets_none_of_the_worker_s_environment() -> None:
    given = {"PATH": "/bin", "AIRFLOW_CONN_DB": "x", "AWS_SECRET_ACCESS_KEY": "x", "AIRCELL_SOCKET": "/s"}
    assert daemon_environment(given.items()) == {"PATH": "/bin", "AIRCELL_SOCKET": "/s"}
