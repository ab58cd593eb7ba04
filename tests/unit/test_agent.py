"""The agent in a real PID namespace: what it reports, whom it signals, whom it leaves behind (nobody)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.agent import PYTHON, RUNNER, Agent

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def start() -> Iterator[Callable[..., Agent]]:
    """Starts an agent and ends it after the test."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        Path(folder).chmod(0o755)
        yield lambda **options: stack.enter_context(Agent(Path(folder), **options))


def ended(code: int | None = None, number: int | None = None, reason: str = "") -> dict[str, Any]:
    return {"code": code, "signal": number, "oom_killed": False, "reason": reason}


# --- before the job


def test_connects_before_anything_else_and_then_says_what_it_found(start: Callable[..., Agent]) -> None:
    agent = start(preload=["json.tool", "no_such_module"])
    connected = agent.frame()
    ready = agent.frame()
    assert connected is not None
    assert ready is not None
    version = connected.pop("python")
    assert version.startswith("3.")
    assert connected == {"type": "connected", "pid": 1}
    assert 0 <= ready.pop("preload_seconds") < 10
    assert ready == {
        "type": "ready",
        "facts": {"runner": "test"},
        "preload_errors": {"no_such_module": "ModuleNotFoundError: No module named 'no_such_module'"},
        "from_mounts": [],
        "spoiled": False,
    }


def test_gate_closed_before_the_job_ends_the_agent(start: Callable[..., Agent]) -> None:
    agent = start()
    agent.ready()
    agent.gate.close()
    assert agent.end() == (0, "")


def test_engine_stop_before_the_job_ends_the_agent(start: Callable[..., Agent]) -> None:
    agent = start()
    agent.ready()
    os.kill(agent.host_pid(), signal.SIGTERM)
    assert agent.end() == (128 + signal.SIGTERM, "")


def test_a_runner_that_refuses_the_image_is_an_incompatible_image(start: Callable[..., Agent]) -> None:
    refusal = 'def preload(): pass\ndef describe(): raise RuntimeError("No Airflow here.\\nInstall it.")\n'
    agent = start(runner=refusal)
    failed = agent.ready()
    assert failed["type"] == "failed"
    assert "describe()" not in failed["error"]["message"]
    assert failed["error"].pop("detail").startswith("Traceback")
    assert failed["error"] == {"kind": "IncompatibleImage", "message": "No Airflow here.", "hint": "Install it."}
    code, log = agent.end()
    assert code == 70
    assert log.startswith("No Airflow here. Install it.\nTraceback")


@pytest.mark.parametrize(
    ("runner", "message"),
    [
        ("import nothing_like_it", "ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("def preload(): 1 / 0\ndef describe(): return {}", "ZeroDivisionError: division by zero"),
        # describe() knows better than preload() what is wrong
        ("def preload(): 1 / 0\ndef describe(): raise RuntimeError('too old')", "too old"),
    ],
)
def test_a_runner_that_cannot_load_is_an_incompatible_image(
    start: Callable[..., Agent], runner: str, message: str
) -> None:
    failed = start(runner=runner).ready()
    assert (failed["error"]["kind"], failed["error"]["message"]) == ("IncompatibleImage", message)


def test_an_old_python_is_refused_naming_both_versions(start: Callable[..., Agent]) -> None:
    pretend = "import runpy, sys; sys.version_info = (3, 7, 4); runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    agent = start(command=[PYTHON, "-c", pretend])
    assert agent.ready() == {
        "type": "failed",
        "error": {
            "kind": "IncompatibleImage",
            "message": "Python 3.7 in the image; 3.9 or newer is needed.",
            "hint": "Build the image on Python 3.9 or newer, or set `python:` to such an interpreter in the image.",
            "detail": "",
        },
    }
    assert agent.end()[0] == 70


# --- a job's start and end


@pytest.mark.parametrize(("source", "code"), [("code = 7", 7), ("code = None", 0), ("raise SystemExit(3)", 3)])
def test_a_runner_job_s_exit_code(start: Callable[..., Agent], source: str, code: int) -> None:
    agent = start()
    worker = agent.run(source)
    assert worker.packet() == {"type": "ready", "facts": {"runner": "test"}}
    started = worker.packet()
    assert started is not None
    assert started["type"] == "started"
    assert worker.exit() == ended(code)
    assert agent.frame() == {"type": "started"}
    assert agent.frame() == {"type": "exited", "exit": ended(code)}
    assert agent.end() == (code, "")


def test_an_exception_in_the_runner_is_on_stderr(start: Callable[..., Agent]) -> None:
    worker = start().run("raise ValueError('broken')")
    assert worker.exit() == ended(1)
    assert worker.errors().endswith("ValueError: broken\n")


def test_a_job_killed_from_inside_is_reported_with_its_signal(start: Callable[..., Agent]) -> None:
    agent = start()
    worker = agent.run("import os; os.kill(os.getpid(), 11)")
    reason = "Ended by SIGSEGV, which came from inside the sandbox or from the node."
    assert worker.exit() == ended(number=11, reason=reason)
    assert agent.end()[0] == 128 + 11


def test_a_command_has_the_streams_and_the_late_environment(start: Callable[..., Agent]) -> None:
    worker = start(runner=None).execute("sh", "-c", "cat; echo $GREETING; echo no >&2; exit 4", env={"GREETING": "hi"})
    worker.requests.sendall(b"from stdin\n")
    worker.requests.shutdown(socket.SHUT_WR)
    assert worker.exit() == ended(4)
    assert (worker.output(), worker.errors()) == ("from stdin\nhi\n", "no\n")


@pytest.mark.parametrize(("command", "code"), [("no-such-command", 127), ("/etc/passwd", 126)])
def test_a_command_that_cannot_run(start: Callable[..., Agent], command: str, code: int) -> None:
    worker = start(runner=None).execute(command)
    assert worker.exit() == ended(code)
    assert worker.errors().startswith(f"aircell: cannot run '{command}': ")


def test_a_command_starts_with_default_signals(start: Callable[..., Agent]) -> None:
    worker = start(runner=None).execute("grep", "^Sig[BI]", "/proc/self/status")
    masks = dict(line.split(":\t") for line in worker.output().splitlines())
    # Signals 32 and 33, which it lets nobody unblock: whoever runs the tests may have them blocked.
    of_the_c_library = 0b11 << 31
    assert {name: int(mask, 16) & ~of_the_c_library for name, mask in masks.items()} == {"SigBlk": 0, "SigIgn": 0}


SHOW_DESCRIPTORS = """
import os
mine = {requests, stdout, stderr, logs}
def inode(fd): return os.fstat(fd).st_ino
def is_open(fd):
    try:
        return bool(inode(fd))
    except OSError:
        return False
extra = set(filter(is_open, range(1024))) - mine - {0, 1, 2}
same = inode(1) == inode(stdout), inode(2) == inode(stderr), os.readlink("/proc/self/fd/0")
os.write(stdout, repr((extra, same)).encode())
"""


def test_a_runner_s_child_has_its_four_descriptors_and_no_other(start: Callable[..., Agent]) -> None:
    agent = start(runner='LEFT_OPEN = open("/etc/passwd")\n' + RUNNER)
    worker = agent.run(SHOW_DESCRIPTORS)
    assert worker.output() == "(set(), (True, True, '/dev/null'))"


def test_the_job_is_a_session_of_its_own_and_likelier_to_be_killed_for_memory(start: Callable[..., Agent]) -> None:
    source = """
import os
scores = [int(open(f"/proc/{pid}/oom_score_adj").read()) for pid in (1, os.getpid())]
os.write(stdout, repr((os.getsid(0) == os.getpgid(0) == os.getpid(), scores[1] > scores[0])).encode())
"""
    assert start().run(source).output() == "(True, True)"


def test_imports_in_the_sandbox_do_not_find_our_files(start: Callable[..., Agent]) -> None:
    assert start(preload=["agent", "runner"]).ready()["preload_errors"].keys() == {"agent", "runner"}


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    """A folder with modules, and one that imports another of them."""
    (tmp_path / "changing.py").write_text("")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "fixed").mkdir()
    (tmp_path / "fixed" / "through.py").write_text("import changing")
    return tmp_path


def test_what_is_mounted_is_not_preloaded(start: Callable[..., Agent], mounted: Path) -> None:
    env = {"PYTHONPATH": f"{mounted}:{mounted}/fixed"}
    folders = [str(mounted / "changing.py"), str(mounted / "package")]
    ready = start(preload=["changing", "package", "through", "json.tool"], mounts=folders, env=env).ready()
    assert ready["preload_errors"].keys() == {"changing", "package", "through"}
    assert "mounted folder" in ready["preload_errors"]["through"]
    assert ready["from_mounts"] == []


def test_a_path_with_a_symbolic_link_is_seen_through(start: Callable[..., Agent], mounted: Path) -> None:
    (mounted / "link").symlink_to(mounted / "package")
    env = {"PYTHONPATH": str(mounted)}
    assert start(preload=["link"], mounts=[str(mounted / "package")], env=env).ready()["preload_errors"].keys() == {
        "link"
    }


def test_what_the_runner_imports_of_a_mount_is_told(start: Callable[..., Agent], mounted: Path) -> None:
    runner = "def preload(): import changing\ndef describe(): return {}\n"
    agent = start(runner=runner, mounts=[str(mounted)], env={"PYTHONPATH": str(mounted)})
    assert agent.ready()["from_mounts"] == ["changing"]


# --- preload: auto

SLOW = "import time\nend = time.thread_time() + 0.1\nwhile time.thread_time() < end: pass\n"
"""A module that takes long to import."""
LOAD = """
import importlib.machinery, importlib.util, traceback
loader = importlib.machinery.SourceFileLoader("dag", {path!r})
spec = importlib.util.spec_from_loader("dag", loader)
try:
    loader.exec_module(importlib.util.module_from_spec(spec))
except Exception:
    os.write(stderr, traceback.format_exc().encode())
os.write(stdout, repr((type(sys.modules["slow"].__spec__).__name__, "lazily" in sys.modules)).encode())
"""
"""Loads a DAG file as Airflow does."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A folder with modules of the image, beside one with those of the DAG's bundle."""
    image, bundle = tmp_path / "image", tmp_path / "bundle"
    for folder in (image / "package", bundle):
        folder.mkdir(parents=True)
    for name in ("slow", "within", "lazily", "in_task", "package/part", "package/__init__"):
        (image / f"{name}.py").write_text(SLOW)
    (image / "slow.py").write_text("import within, time\n" + SLOW)
    (image / "quick.py").write_text("def load():\n    import lazily\n")
    (image / "broken.py").write_text(SLOW + "raise ValueError('broken')\n")
    (bundle / "helper.py").write_text("import package.part\n" + SLOW)
    dag = "import sys\nsys.path.append({bundle!r})\nimport helper, quick, slow\nquick.load()\nimport broken\n"
    (bundle / "dag.py").write_text(dag.format(bundle=str(bundle)))
    return image


def test_what_the_loading_of_dag_code_is_slow_to_import_is_told_at_the_end(
    start: Callable[..., Agent], image: Path
) -> None:
    bundle = image.parent / "bundle"
    agent = start(mounts=[str(bundle)], settings={"learn": True}, env={"PYTHONPATH": str(image)})
    source = f"import os, sys\n{LOAD.format(path=str(bundle / 'dag.py'))}\nimport in_task"
    worker = agent.run(source)
    assert worker.output() == "('ModuleSpec', True)"
    assert "import_clock" not in worker.errors()
    frames = [agent.frame(), agent.frame()]
    exit = ended(code=0)
    imports = ["package", "package.part", "slow", "lazily"]
    assert frames == [{"type": "started"}, {"type": "exited", "exit": exit, "imports": imports}]


def test_a_job_that_fills_the_page_or_writes_nonsense_there_is_told_of_in_bounds(start: Callable[..., Agent]) -> None:
    source = """
import sys
clock = sys.meta_path[0].clock
clock.page.write(bytes(range(255, 0, -1)))
for number in range(10000): clock.note("m" * 1000, 1)
"""
    agent = start(settings={"learn": True})
    worker = agent.run(source)
    assert worker.output() == ""
    agent.frame()
    told = agent.frame()
    assert told is not None
    assert told["exit"]["code"] == 0
    assert len("".join(told["imports"])) <= 4096


def test_a_job_that_nobody_learns_from_has_no_clock(start: Callable[..., Agent]) -> None:
    agent = start()
    source = "import os, sys\nos.write(stdout, repr('aircell_import_clock' in sys.modules).encode())"
    worker = agent.run(source)
    assert worker.output() == "False"
    assert [agent.frame(), agent.frame()] == [{"type": "started"}, {"type": "exited", "exit": ended(code=0)}]


THREADED = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
CAREFUL = """
import os, threading
end = threading.Event()
thread = threading.Thread(target=end.wait, daemon=True)
thread.start()
def before_fork():
    end.set()
    thread.join()
os.register_at_fork(before=before_fork)
"""
"""Starts a thread and ends it when the process forks, as OpenBLAS does."""


@pytest.mark.parametrize(("source", "left_out"), [(THREADED, True), (CAREFUL, False)])
def test_a_module_that_was_learned_may_start_no_thread_that_a_fork_would_lack(
    start: Callable[..., Agent], tmp_path: Path, source: str, left_out: bool
) -> None:
    (tmp_path / "starts.py").write_text(source)
    learned = {"learn": True, "learned": ["json.tool", "starts", "no_such_module"]}
    ready = start(settings=learned, env={"PYTHONPATH": str(tmp_path)}).ready()
    assert ready["spoiled"] is left_out
    assert ("starts" in ready["preload_errors"]) is left_out
    assert "no_such_module" in ready["preload_errors"]
    assert "json.tool" not in ready["preload_errors"]


UNPRIVILEGED = ["setpriv", "--reuid=50000", "--regid=0", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
LOOK_AT_THE_AGENT = """
import os
found = []
for pid in (1, os.getpid()):
    for name in ("environ", "maps", "mem", "fd"):
        path = f"/proc/{pid}/{name}"
        try:
            os.listdir(path) if name == "fd" else open(path, "rb").close()
            found.append(path.replace(str(os.getpid()), "self"))
        except PermissionError:
            pass
os.write(stdout, " ".join(found).encode())
"""


def test_a_job_of_the_same_user_cannot_look_into_the_agent(start: Callable[..., Agent]) -> None:
    agent = start(command=[*UNPRIVILEGED, PYTHON])
    worker = agent.run(LOOK_AT_THE_AGENT)
    assert worker.output() == "/proc/self/environ /proc/self/maps /proc/self/mem /proc/self/fd"


# --- what a job leaves behind

DAEMONISE = """
import os, time
def daemon():
    os.setsid()
    if os.fork():
        os._exit(0)
    os.write(stdout, b"up")
    time.sleep(600)
if os.fork() == 0:
    daemon()
time.sleep(0.2)
"""


def test_a_double_forked_daemon_is_dead_before_the_exit_is_reported(start: Callable[..., Agent]) -> None:
    worker = start().run(DAEMONISE)
    assert worker.exit() == ended(0)
    worker.stdout.setblocking(False)
    assert worker.stdout.recv(10) == b"up"
    assert worker.stdout.recv(10) == b"", "the daemon still holds stdout"


REAPED = """
import os, time
orphan = os.fork()
if orphan == 0:
    for _ in range(20):
        if os.fork() == 0:
            time.sleep(0.05)
            os._exit(0)
    os._exit(0)
os.waitpid(orphan, 0)
deadline = time.monotonic() + 5
def others():
    return [pid for pid in os.listdir("/proc") if pid.isdigit() and int(pid) not in (1, os.getpid())]
while others() and time.monotonic() < deadline:
    time.sleep(0.01)
code = len(others())
"""


def test_orphans_are_reaped_while_the_job_runs(start: Callable[..., Agent]) -> None:
    assert start().run(REAPED).exit() == ended(0)


# --- signals and stops

TRAP = "trap 'echo caught; exit 5' TERM; echo up; while :; do sleep 0.02; done"
DEAF = "trap '' TERM; echo up; while :; do sleep 0.02; done"


def test_the_worker_s_signal_reaches_the_job(start: Callable[..., Agent]) -> None:
    worker = start(runner=None).execute("sh", "-c", TRAP)
    worker.until("up")
    worker.signal(signal.SIGTERM)
    assert worker.exit() == ended(5, reason="Ended after the worker sent SIGTERM.")


def test_the_worker_s_signal_reaches_the_whole_process_group(start: Callable[..., Agent]) -> None:
    child = "(trap 'echo child; exit' TERM; echo up; sleep 60 & wait) & wait"
    worker = start(runner=None).execute("sh", "-c", f"trap 'wait; exit 3' TERM; {child}")
    worker.until("up")
    worker.signal(signal.SIGTERM)
    assert worker.exit() == ended(3, reason="Ended after the worker sent SIGTERM.")
    assert worker.output() == "child\n"


def test_a_kill_reaches_processes_outside_the_group(start: Callable[..., Agent]) -> None:
    worker = start(runner=None).execute("sh", "-c", "setsid sh -c 'echo up; sleep 60' & sleep 60")
    worker.until("up")
    worker.signal(signal.SIGKILL)
    assert worker.exit() == ended(number=9, reason="Ended after the worker sent SIGKILL.")


def test_signals_sent_before_the_job_started_are_not_lost(start: Callable[..., Agent]) -> None:
    agent = start(runner=None)
    agent.ready()
    os.kill(agent.host_pid(), signal.SIGSTOP)
    worker = agent.job(argv=["sleep", "60"])
    worker.signal(signal.SIGTERM)
    os.kill(agent.host_pid(), signal.SIGCONT)
    assert worker.exit() == ended(number=15, reason="Ended after the worker sent SIGTERM.")


def test_garbage_on_the_lifeline_is_ignored(start: Callable[..., Agent]) -> None:
    agent = start(runner=None)
    worker = agent.execute("sh", "-c", TRAP)
    worker.until("up")
    for packet in (b"\xff", b"[]", b"{}", b'{"signal": 9999}', b'{"signal": "x"}'):
        worker.lifeline.send(packet)
    worker.signal(signal.SIGTERM)
    assert worker.exit()["code"] == 5
    assert agent.end()[1].count("ignored a packet") == 5


@pytest.mark.parametrize("unread", [False, True])
def test_the_job_ends_with_its_worker(start: Callable[..., Agent], unread: bool) -> None:
    agent = start(runner=None)
    worker = agent.execute("sh", "-c", "echo up; sleep 60")
    worker.until("up")
    if not unread:
        worker.packet(), worker.packet()
    worker.lifeline.close()
    assert agent.frame() == {"type": "started"}
    exited = {"type": "exited", "exit": ended(number=15, reason="Ended after the worker went away.")}
    assert agent.frame() == exited
    assert agent.end()[0] == 143


def test_a_deaf_job_of_a_dead_worker_is_killed_after_the_grace(start: Callable[..., Agent]) -> None:
    agent = start(runner=None)
    worker = agent.execute("sh", "-c", DEAF, stop_grace=0.3)
    worker.until("up")
    before = time.monotonic()
    worker.lifeline.shutdown(socket.SHUT_WR)
    reason = "Ended after the worker went away, and it did not end within 0.3 s."
    assert worker.exit() == ended(number=9, reason=reason)
    assert 0.3 <= time.monotonic() - before < 2


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (TRAP, ended(5, reason="Ended after the engine stopped the sandbox.")),
        (DEAF, ended(None, 9, "Ended after the engine stopped the sandbox, and it did not end within 0.3 s.")),
    ],
)
def test_engine_stop_ends_the_job(start: Callable[..., Agent], script: str, expected: dict[str, Any]) -> None:
    agent = start(runner=None)
    worker = agent.execute("sh", "-c", script, stop_grace=0.3)
    worker.until("up")
    os.kill(agent.host_pid(), signal.SIGTERM)
    assert worker.exit() == expected


# --- whoever else fails


def test_the_job_survives_aircelld(start: Callable[..., Agent]) -> None:
    agent = start(runner=None)
    worker = agent.execute("sh", "-c", "echo up; read line; echo $line; exit 6")
    worker.until("up")
    agent.gate.close()
    worker.requests.sendall(b"still here\n")
    assert worker.exit() == ended(6)
    assert worker.output() == "still here\n"


def test_a_worker_that_does_not_read_blocks_nothing_and_loses_nothing(start: Callable[..., Agent]) -> None:
    facts = {"padding": "x" * 3000}
    agent = start(runner=RUNNER.replace('{"runner": "test"}', json.dumps(facts)))
    worker = agent.run("import os; os.write(stdout, b'done')", lifeline_buffer=1)
    assert worker.output() == "done"
    assert agent.frame() == {"type": "started"}
    time.sleep(0.3)  # the agent now wants to report the end, and there is no room
    packets = [worker.packet() for _ in range(3)]
    assert [packet and packet["type"] for packet in packets] == ["ready", "started", "exited"]
    assert worker.packet() is None
