"""PID 1 of a sandbox: prepares the interpreter, waits for one job, forks it, reports how it ended.

One file, standard library only: it is mounted into images that hold nothing of ours. It works on Python 3.9 and
newer; Python 3.6 can still parse it (quoted annotations, no newer syntax), so that an image with an old Python gets
a clear refusal. It speaks sections 2 and 3 of ``docs/protocol.md``.

The agent holds no secret. It trusts neither the job, which cannot make it wait, nor aircelld to live on: after the
hand-over only the lifeline matters.
"""

import array
import collections
import gc
import importlib
import importlib.machinery
import importlib.util
import json
import os
import select
import selectors
import signal
import socket
import struct
import sys
import time
import traceback
from typing import Any, NoReturn

RUN_DIR = "/run/aircell"
OLDEST_PYTHON = (3, 9)
EXIT_CANNOT_SERVE = 70
"""EX_SOFTWARE of sysexits.h; the gate's ``failed`` frame says why."""
FLUSH_SECONDS = 5.0
"""How long the last report may wait for a worker that does not read, and the reaping for a process in the kernel."""
KILL_AGAIN_SECONDS = 0.05
"""How long nothing may end before the rest is killed again: a process may have been made meanwhile."""
OOM_SCORE_STEP = 500
"""Added to the job's oom_score_adj, so that the kernel kills the job before the agent that has to report it."""
MEMORY_FILES = (
    ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory.max"),
    ("/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Where cgroup v2 and v1 count OOM kills and keep the limit, see cgroup-v2.rst and cgroup-v1/memory.rst."""
PR_SET_DUMPABLE = 4


class CannotServe(Exception):
    """This image or this sandbox cannot run a job."""

    def __init__(self, kind: str, message: str, hint: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.error = {"kind": kind, "message": message, "hint": hint, "detail": detail}


class Frames:
    """A stream of frames, each a 4-byte big-endian length and a JSON object, some with descriptors."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def send(self, message: "dict[str, Any]", fds: "tuple[int, ...] | list[int]" = ()) -> None:
        body = json.dumps(message).encode()
        data = struct.pack(">I", len(body)) + body
        sent = socket.send_fds(self.sock, [data], fds) if fds else 0
        if sent < len(data):  # or whoever has read it all, and gone, would count as gone too early
            self.sock.sendall(data[sent:])

    def receive(self) -> "tuple[dict[str, Any], list[int]] | None":
        """The next frame and its descriptors, or None at end of file."""
        data, fds = bytearray(), array.array("i")
        while len(data) < 4 or len(data) < 4 + struct.unpack_from(">I", data)[0]:
            room = socket.CMSG_SPACE(16 * fds.itemsize)
            chunk, ancillary, _, _ = self.sock.recvmsg(65536, room, socket.MSG_CMSG_CLOEXEC)
            if not chunk:
                return None
            data += chunk
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        return json.loads(data[4:].decode()), fds.tolist()


class Gate(Frames):
    """The connection to aircelld."""

    def __init__(self, path: str) -> None:
        super().__init__(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        self.sock.connect(path)


# --- before the job ----------------------------------------------------------------------------------------------


def check_interpreter(version: "tuple[int, ...]" = sys.version_info[:3]) -> None:
    """Raises CannotServe when this Python is too old."""
    if version[:2] < OLDEST_PYTHON:
        found, wanted = ("{}.{}".format(*pair) for pair in (version, OLDEST_PYTHON))
        raise CannotServe(
            "IncompatibleImage",
            f"Python {found} in the image; {wanted} or newer is needed.",
            f"Build the image on Python {wanted} or newer, or set `python:` to such an interpreter in the image.",
        )


def check_place() -> None:
    """Raises CannotServe unless this is PID 1: the agent ends *every* other process it can see."""
    if os.getpid() != 1:
        raise CannotServe(
            "StartupFailed",
            f"The agent is process {os.getpid()} of its PID namespace; it must be process 1.",
            "Give each sandbox a PID namespace of its own.",
        )


def settings(run_dir: str) -> "dict[str, Any]":
    """What aircelld says of this sandbox."""
    with open(os.path.join(run_dir, "agent.json"), "rb") as file:  # noqa: PTH118, PTH123
        return dict(json.loads(file.read().decode()))


def load(run_dir: str, name: str) -> Any:
    """A module beside this one, or None when there is no such file (a plain command needs no runner)."""
    path = os.path.join(run_dir, name + ".py")  # noqa: PTH118
    if not os.path.exists(path):  # noqa: PTH110
        return None
    spec = importlib.util.spec_from_file_location("aircell_" + name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class NotFromMounts:
    """A finder of ``sys.meta_path`` that refuses what lies in a mounted folder: it may change before there is a job."""

    def __init__(self, folders: "list[str]") -> None:
        self.folders = folders

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Finds nothing. Raises ImportError for a module that the next finder would take from one of the folders."""
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and self.holds(spec.origin):
            raise ImportError(f"{spec.origin} is in a mounted folder, and may change before there is a job", name=name)

    def holds(self, file: "str | None") -> bool:
        """Whether the file is in one of the folders, by any path."""
        places = {file, os.path.realpath(file)} if file else ()
        return any((place + "/").startswith(folder + "/") for place in places for folder in self.folders)

    def modules(self) -> "list[str]":
        """Those that have been imported from the folders all the same."""
        files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
        return sorted(name for name, file in files.items() if self.holds(file))


def preload(modules: "list[str]", not_from_mounts: NotFromMounts) -> "dict[str, str]":
    """Imports modules; what failed, by name. A task may not need them, so a failure ends nothing."""
    errors = {}
    sys.meta_path.insert(0, not_from_mounts)
    for name in modules:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            errors[name] = "".join(traceback.format_exception_only(type(error), error)).strip()
    sys.meta_path.remove(not_from_mounts)
    return errors


def preload_learned(modules: "list[str]", not_from_mounts: NotFromMounts) -> "tuple[dict[str, str], bool]":
    """The same for modules that nobody has named, of which none may start threads: and whether one has."""
    errors, spoiled = {}, False
    for name in modules:
        before = threads()
        errors.update(preload([name], not_from_mounts))
        if keeps_threads(before):
            errors[name] = "it starts threads, which a fork does not have"
            spoiled = True
    return errors, spoiled


def threads() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208


def keeps_threads(before: int) -> bool:
    """Whether there are more threads than before, and still are when this process has forked.

    Libraries that care for forks end theirs: numpy's OpenBLAS does, pthread_atfork(3).
    """
    if threads() <= before:
        return False
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    time.sleep(0.01)  # a thread that was joined is listed a moment longer
    return threads() > before


def prepare(run_dir: str, set_dumpable: Any) -> "Prepared":
    """Imports everything that can be imported before the job."""
    started = time.monotonic()
    config = settings(run_dir)
    try:
        runner = load(run_dir, "runner")
        facts = describe(runner) if runner is not None else {}
    except (Exception, SystemExit) as error:
        message, _, hint = str(error).partition("\n")
        if not isinstance(error, RuntimeError):
            message = f"{type(error).__name__}: {message}"
        raise CannotServe("IncompatibleImage", message, hint, traceback.format_exc()) from error
    not_from_mounts = NotFromMounts(config.get("mounts", []))
    errors = preload(config.get("preload", []), not_from_mounts)
    learned_errors, spoiled = preload_learned(config.get("learned", []), not_from_mounts)
    clock_module = load(run_dir, "import_clock") if config.get("learn") else None
    gc.collect()
    gc.freeze()  # the child then copies no page merely because the collector touches it
    ready = {
        "type": "ready",
        "facts": facts,
        "preload_seconds": round(time.monotonic() - started, 3),
        "preload_errors": {**errors, **learned_errors},
        "from_mounts": not_from_mounts.modules()[:10],
        "spoiled": spoiled,
    }
    return Prepared(run_dir, runner, clock_module, ready, set_dumpable)


def describe(runner: Any) -> "dict[str, Any]":
    """The runner's facts. ``describe`` knows best what an image lacks, so it is asked even if ``preload`` fails."""
    try:
        runner.preload()
    except Exception:
        runner.describe()
        raise
    facts: dict[str, Any] = runner.describe()
    json.dumps(facts)
    return facts


# --- the job -----------------------------------------------------------------------------------------------------


class Job:
    """What to run, and its streams."""

    def __init__(self, frame: "dict[str, Any]", fds: "list[int]") -> None:
        self.requests, self.stdout, self.stderr, self.logs = fds
        self.kind: str = frame["kind"]
        self.argv: list[str] = frame.get("argv") or []
        self.args: dict[str, Any] = frame.get("args") or {}
        self.env: dict[str, str] = frame.get("env") or {}

    @property
    def streams(self) -> "tuple[int, int, int, int]":
        return self.requests, self.stdout, self.stderr, self.logs


class Understudy:
    """The job's process before there is a job. Copying the memory of this one takes milliseconds that nobody waits for
    yet, and so does what the copy has to do first."""

    def __init__(self, prepared: "Prepared") -> None:
        self.clock = prepared.clock_module and prepared.clock_module.ImportClock()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        sys.stdout.flush()
        sys.stderr.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # until it has handlers of its own
        self.pid = os.fork()
        if self.pid == 0:
            run_child(Frames(theirs), prepared, self.clock)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        theirs.close()
        self.frames = Frames(ours)

    def waits(self) -> bool:
        """Whether it lives."""
        return os.waitpid(self.pid, os.WNOHANG) == (0, 0)

    def begin(self, frame: "dict[str, Any]", fds: "list[int]") -> None:
        """Gives it the job. Should it end before it has read that, how it ended is the end of the job."""
        try:
            self.frames.send(frame, fds)
        except OSError as error:
            print(f"aircell agent: the job could not be started: {error}", file=sys.stderr, flush=True)
        self.frames.sock.close()

    def heard(self) -> "dict[str, Any]":
        """What its process has told besides how it ended."""
        return {} if self.clock is None else {"imports": self.clock.names()}


def run_child(frames: Frames, prepared: "Prepared", clock: Any) -> NoReturn:
    """The forked child, from its first line to its end."""
    code: Any = 1
    try:
        os.setsid()
        reset_signals()
        if prepared.owns_pages:
            own_pages_until(frames.sock)
        received = frames.receive()
        if received is None:
            os._exit(1)
        job = Job(*received)
        receive_signals(ignore_pipe=job.kind == "runner")
        prepared.set_dumpable(1)  # user code may look at its own /proc/self, and this itself must, here
        become_likelier_oom_victim()
        take_descriptors(job)
        os.environ.update(job.env)
        if job.kind == "exec":
            execute(job.argv)
        if clock is not None:
            mounts = settings(prepared.run_dir).get("mounts", [])  # a fork has others than its zygote
            clock.start(NotFromMounts(mounts).holds)
        code = prepared.runner.run(*job.streams, job.args)
    except SystemExit as stop:
        code = stop.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):  # closed by the job, or nobody reads it any more: nothing is left to save
                continue
        os._exit((code or 0) & 0xFF)


def own_pages_until(news: socket.socket) -> None:
    """Touches what every module holds, until there is something to read or no more to touch.

    To count a reference is to write: the first time that a fork uses an object, the kernel copies its page. That takes
    tens of milliseconds of a job, unless it has happened while there was none.
    """
    for module in list(sys.modules.values()):
        if select.select([news], [], [], 0)[0]:
            return
        for _ in list(getattr(module, "__dict__", {}).values()):
            pass


def reset_signals() -> None:
    """Dispositions as a fresh process has them."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is not None:
            signal.signal(number, signal.SIG_DFL)


def receive_signals(ignore_pipe: bool) -> None:
    """From here on, and those that came before; a Python process ignores SIGPIPE, a command must not."""
    if ignore_pipe:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def become_likelier_oom_victim() -> None:
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:  # noqa: PTH123
            score = min(1000, int(file.read()) + OOM_SCORE_STEP)
            file.seek(0)
            file.write(str(score))
    except OSError as error:  # the job can do without: only the report of its end may be poorer
        print(f"aircell agent: {error}", file=sys.stderr)


def take_descriptors(job: Job) -> None:
    """Leaves the job its own descriptors and no other: not the gate, not the lifeline, nothing that imports opened."""
    if job.kind == "exec":
        os.dup2(job.requests, 0)
        keep = {0, 1, 2}
    else:
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        keep = {0, 1, 2, *job.streams}
    os.dup2(job.stdout, 1)
    os.dup2(job.stderr, 2)
    for fd in set(map(int, os.listdir("/proc/self/fd"))) - keep:  # noqa: PTH208
        try:
            os.close(fd)
        except OSError:  # the descriptor of the listing itself
            continue


def execute(argv: "list[str]") -> None:
    """Becomes the command. Raises SystemExit as a shell would: 127 when there is none, 126 when it cannot run."""
    try:
        os.execvpe(argv[0], argv, os.environ)  # noqa: S606 - the command is the job
    except OSError as error:
        print(f"aircell: cannot run {argv[0]!r}: {error.strerror}", file=sys.stderr)
        raise SystemExit(127 if isinstance(error, FileNotFoundError) else 126) from error


# --- around the job ----------------------------------------------------------------------------------------------


class Everyone:
    """Whom the agent ends with its job: all that it can see, which is a PID namespace of which it is the first."""

    memory_is_shared = False
    """Whether others than these are under the same limit of memory."""

    def check(self) -> None:
        """Raises CannotServe unless this is PID 1."""
        check_place()

    def signal(self, number: int) -> None:
        """Sends it to each of them but the agent itself."""
        signal_everyone(number)


class Supervisor:
    """Watches one job from its beginning to the last zombie."""

    def __init__(
        self,
        lifeline: socket.socket,
        stop_grace: float,
        leash: "socket.socket | None" = None,
        everyone: "Everyone | None" = None,
    ) -> None:
        self.everyone = everyone or Everyone()
        self.lifeline = lifeline
        self.lifeline.setblocking(False)
        self.stop_grace = stop_grace
        self.oom_kills = oom_kills()
        self.unsent: collections.deque[bytes] = collections.deque()
        self.kill_at: float | None = None
        self.cause = ""
        self.child = -1
        self.wakeup = wake_on_signals(signal.SIGCHLD, signal.SIGTERM)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.wakeup, selectors.EVENT_READ, self.on_signal)
        self.selector.register(self.lifeline, selectors.EVENT_READ, self.on_lifeline)
        if leash is not None:
            leash.setblocking(False)
            self.selector.register(leash, selectors.EVENT_READ, lambda: self.on_leash(leash))

    def watch(self, child: int) -> "dict[str, Any]":
        """Returns once the child and every other process of the sandbox are dead and reaped: the ExitStatus."""
        self.child = child
        self.report({"type": "started", "pid": child})
        status = self.reap()
        while status is None:
            for key, _ in self.selector.select(self.seconds_to_kill()):
                key.data()
            if self.kill_at is not None and time.monotonic() >= self.kill_at:
                self.cause += f", and it did not end within {self.stop_grace:g} s"
                self.kill_at = None
                self.deliver(signal.SIGKILL)
            status = self.reap()
        self.kill_the_rest()
        return describe_exit(status, self.new_oom_kills(status), self.cause)

    def new_oom_kills(self, status: int) -> int:
        """Where others are under the same limit, only the end of the main child says that a kill may have been its."""
        if self.everyone.memory_is_shared and not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            return 0
        return oom_kills() - self.oom_kills

    def seconds_to_kill(self) -> "float | None":
        return None if self.kill_at is None else max(0.0, self.kill_at - time.monotonic())

    def on_signal(self) -> None:
        if signal.SIGTERM in os.read(self.wakeup, 4096):
            self.terminate("the engine stopped the sandbox")

    def on_lifeline(self) -> None:
        try:
            packet = self.lifeline.recv(65536)
        except BlockingIOError:
            return
        except OSError:  # reset: the worker closed it with our packets unread
            packet = b""
        if not packet:
            self.selector.unregister(self.lifeline)
            self.terminate("the worker went away")
            return
        try:
            number = signal.Signals(json.loads(packet.decode())["signal"])
        except (ValueError, KeyError, TypeError) as error:
            print(f"aircell agent: ignored a packet on the lifeline: {error!r}", file=sys.stderr, flush=True)
            return
        self.cause = f"the worker sent {number.name}"
        self.deliver(number)

    def on_leash(self, leash: socket.socket) -> None:
        """The engine asked the first process of the shell to stop, or killed it: it is in another PID namespace."""
        try:
            asked = leash.recv(64)
        except OSError:
            asked = b""
        if asked:
            return self.terminate("the engine stopped the sandbox")
        self.selector.unregister(leash)
        self.cause = "the engine killed the sandbox"
        return self.deliver(signal.SIGKILL)

    def terminate(self, cause: str) -> None:
        """TERM now, KILL after the grace period, whatever happens in between."""
        if self.kill_at is None:
            self.cause = cause
            self.kill_at = time.monotonic() + self.stop_grace
            self.deliver(signal.SIGTERM)

    def deliver(self, number: int) -> None:
        """To the job's process group; KILL, or a group that does not exist (yet), means every process but this."""
        if number != signal.SIGKILL:
            try:
                return os.killpg(self.child, number)
            except ProcessLookupError:
                print("aircell agent: no process group; signalling every process", file=sys.stderr, flush=True)
        return self.everyone.signal(number)

    def reap(self) -> "int | None":
        """Buries every zombie; the wait status of the main child when it was among them."""
        found = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return found
            if pid == 0:
                return found
            if pid == self.child:
                found = status

    def kill_the_rest(self) -> None:
        """Every other process. The agent inherits all orphans, so when no child is left nobody is."""
        deadline = time.monotonic() + FLUSH_SECONDS
        while time.monotonic() < deadline:
            self.everyone.signal(signal.SIGKILL)
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0 and select.select([self.wakeup], [], [], KILL_AGAIN_SECONDS)[0]:
                    os.read(self.wakeup, 4096)
            except ChildProcessError:
                return
        print("aircell agent: a process outlived KILL; the kernel ends it with the sandbox", file=sys.stderr)

    def report(self, message: "dict[str, Any]", patience: float = 0.0) -> None:
        """Sends a packet to the worker, or keeps it for later when the worker does not read."""
        self.unsent.append(json.dumps(message).encode())
        deadline = time.monotonic() + patience
        while self.unsent:
            try:
                self.lifeline.send(self.unsent[0])
                self.unsent.popleft()
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return
                select.select([], [self.lifeline], [], deadline - time.monotonic())
            except OSError:  # nobody is there
                self.unsent.clear()


def wake_on_signals(*numbers: int) -> int:
    """A descriptor from which those that came can be read."""
    reader, writer = os.pipe()
    for fd in (reader, writer):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, lambda *_: None)  # it is the descriptor that matters
    return reader


def signal_everyone(number: int) -> None:
    try:
        os.kill(-1, number)
    except (ProcessLookupError, PermissionError):  # nobody, or nobody that we may signal
        return


def oom_kills() -> int:
    """How often the kernel killed in this sandbox for its memory limit; 0 where no file tells."""
    for events, _ in MEMORY_FILES:
        for line in read_lines(events):
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0


def memory_limit() -> str:
    for _, limit in MEMORY_FILES:
        for line in read_lines(limit):
            return f"{int(line) / 2**20:g} MiB" if line.isdigit() else line
    return "unknown"


def read_lines(path: str) -> "list[str]":
    try:
        with open(path) as file:  # noqa: PTH123
            return file.read().splitlines()
    except OSError:
        return []


def describe_exit(status: int, killed: int, cause: str) -> "dict[str, Any]":
    """An ExitStatus as the wire has it, from a wait status, the new OOM kills and what was done to the job."""
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    code = os.WEXITSTATUS(status) if number is None else None
    reason = f"Ended after {cause}." if cause else ""
    if killed > 0:
        reason = f"The kernel killed a process of the sandbox: the memory limit of {memory_limit()} was reached."
    elif number is not None and not cause:
        reason = f"Ended by {signal_name(number)}, which came from inside the sandbox or from the node."
    return {"code": code, "signal": number, "oom_killed": killed > 0, "reason": reason}


def signal_name(number: int) -> str:
    """``SIGTERM`` and the like; most real-time signals have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def run_job(
    gate: Frames,
    frame: "dict[str, Any]",
    fds: "list[int]",
    understudy: Understudy,
    facts: "dict[str, Any]",
    leash: "socket.socket | None",
    everyone: "Everyone | None",
) -> "dict[str, Any]":
    """Runs the job to its end and reports it: the ExitStatus."""
    *streams, lifeline = fds
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # until the supervisor can take them
    tell(gate, {"type": "started"})  # first: as long as aircelld has not heard it, another sandbox may get the job
    supervisor = Supervisor(socket.socket(fileno=lifeline), float(frame.get("stop_grace") or 0), leash, everyone)
    supervisor.report({"type": "ready", "facts": facts})
    understudy.begin(frame, streams)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for fd in streams:
        os.close(fd)
    exit_status = supervisor.watch(understudy.pid)
    supervisor.report({"type": "exited", "exit": exit_status}, patience=FLUSH_SECONDS)
    tell(gate, {"type": "exited", "exit": exit_status, **understudy.heard()})
    return exit_status


def tell(gate: Frames, message: "dict[str, Any]") -> None:
    """Best effort: aircelld may be gone, or may not read."""
    gate.sock.setblocking(False)
    try:
        gate.send(message)
    except OSError as error:
        print(f"aircell agent: aircelld was not told: {error}", file=sys.stderr, flush=True)


def dumpable_setter() -> Any:
    """A function that sets whether other processes of this uid may trace this one and read its memory, prctl(2)."""
    try:
        import ctypes  # here, because a stripped-down Python lacks it, and must get as far as saying so
    except ImportError as error:
        hint = "Install Python's whole standard library in the image (Debian: libpython3-stdlib)."
        raise CannotServe("IncompatibleImage", f"Python in the image has no ctypes: {error}.", hint) from error
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return lambda value: prctl(PR_SET_DUMPABLE, value, 0, 0, 0)


class Prepared:
    """An interpreter that has imported all that it can before the job."""

    def __init__(
        self, run_dir: str, runner: Any, clock_module: Any, ready: "dict[str, Any]", set_dumpable: Any
    ) -> None:
        self.run_dir = run_dir
        self.runner = runner
        self.clock_module = clock_module
        self.ready = ready
        self.set_dumpable = set_dumpable
        self.owns_pages = True
        """Whether a process that waits for its job copies beforehand what the job may write to."""


def connect(run_dir: str) -> Gate:
    """Tells aircelld that the interpreter runs."""
    gate = Gate(os.path.join(run_dir, "gate.sock"))  # noqa: PTH118
    introduce(gate)
    return gate


def introduce(gate: Frames) -> None:
    """What an agent says first."""
    gate.send({"type": "connected", "python": sys.version.split()[0], "pid": os.getpid()})


def make_ready(gate: Gate, run_dir: str) -> "Prepared | None":
    """None when this image cannot run a job, and aircelld has been told why."""
    sys.path[:] = [entry for entry in sys.path if entry != run_dir]  # or `import runner` would find ours
    try:
        check_interpreter()
        set_dumpable = dumpable_setter()
        prepared = prepare(run_dir, set_dumpable)
    except CannotServe as cannot:
        refuse(gate, cannot)
        return None
    set_dumpable(0)
    return prepared


def refuse(gate: Frames, cannot: CannotServe) -> None:
    print("{message} {hint}\n{detail}".format(**cannot.error), file=sys.stderr, flush=True)
    gate.send({"type": "failed", "error": cannot.error})


def serve(
    gate: Frames, prepared: Prepared, leash: "socket.socket | None" = None, everyone: "Everyone | None" = None
) -> int:
    """Serves one job; the exit code of the sandbox. ``leash`` is a fork's, see ``zygote.py``."""
    everyone = everyone or Everyone()
    try:
        everyone.check()
    except CannotServe as cannot:
        refuse(gate, cannot)
        return EXIT_CANNOT_SERVE
    understudy = Understudy(prepared)
    gate.send(prepared.ready)
    received = gate.receive()
    if received is None:
        return 0
    if not understudy.waits():
        print("aircell agent: the process for the job was killed", file=sys.stderr, flush=True)
        return EXIT_CANNOT_SERVE
    ended = run_job(gate, *received, understudy, prepared.ready["facts"], leash, everyone)
    return int(ended["code"] if ended["signal"] is None else 128 + ended["signal"])


def main(run_dir: str = RUN_DIR) -> int:
    """The exit code of the sandbox."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gate = connect(run_dir)
    prepared = make_ready(gate, run_dir)
    return EXIT_CANNOT_SERVE if prepared is None else serve(gate, prepared)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
