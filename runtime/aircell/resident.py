"""A resident: prepares the interpreter once, and then forks for each job, which stays in the resident's container.

One file, standard library only; it lies beside ``zygote.py`` and ``agent.py``, whose work it does in the fork. It
speaks the messages of ``docs/protocol.md``, part 2. A fork is confined in one of two ways, as aircelld orders:

- where the container is in a user namespace of its own, by namespaces: it sees no process and no file of another fork,
  and gives up every capability;
- elsewhere the resident has no privileges, and a fork is told apart by its descent: a *keeper* that inherits whatever
  its job leaves behind, and ends it.

Sources: pid_namespaces(7), mount_namespaces(7), PR_SET_CHILD_SUBREAPER in prctl(2), ``task/TID/children`` in proc(5).
"""

import grp
import importlib.util
import os
import pwd
import select
import shutil
import signal
import socket
import struct
import sys
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from aircell import agent, zygote
else:  # by its path: it is nothing that code of the image could import
    _spec = importlib.util.spec_from_file_location("aircell_zygote", __file__.replace("resident.py", "zygote.py"))
    zygote = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(zygote)
    agent = zygote.agent

PR_SET_CHILD_SUBREAPER = 36
MS_PRIVATE = 1 << 18
SCRATCH = "/tmp"  # noqa: S108 - private to the fork, or to its container
SHM = "/dev/shm"  # noqa: S108
_PID = struct.Struct("i")


# --- Whom a fork ends with its job -------------------------------------------------------------------------------


class OwnNamespace(agent.Everyone):
    """The fork's PID namespace; its limits are the resident's."""

    memory_is_shared = True


class Descendants(agent.Everyone):
    """All that come from this process: as a subreaper it is the parent of those whose own has ended."""

    memory_is_shared = True

    def check(self) -> None:
        """Nothing has to be so."""

    def signal(self, number: int) -> None:
        """Sends it to each. Before KILL they are all stopped: what is stopped has no more children."""
        found = descendants(os.getpid())
        if number == signal.SIGKILL:
            stopped: set[int] = set()
            while not found <= stopped:
                send(found - stopped, signal.SIGSTOP)
                stopped |= found
                found = descendants(os.getpid())
        send(found, number)


def descendants(pid: int) -> "set[int]":
    found: set[int] = set()
    new = children(pid)
    while new:
        found |= new
        new = {each for parent in new for each in children(parent)} - found
    return found


def children(pid: int) -> "set[int]":
    """Of each of its threads; none when it has ended."""
    found: set[int] = set()
    try:
        for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
            with open(f"/proc/{pid}/task/{task}/children") as file:  # noqa: PTH123
                found.update(map(int, file.read().split()))
    except OSError:
        return found
    return found


def send(pids: "set[int]", number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):  # it has ended, or has become another user's
            continue


# --- A fork ------------------------------------------------------------------------------------------------------


class Order(zygote.Confinement):
    """What a fork becomes: aircelld's ``fork`` frame, with its connection to aircelld."""

    def __init__(self, frame: "dict[str, Any]", fds: "list[int]") -> None:
        super().__init__({**frame, "uid": -1, "gid": -1})
        (self.gate,) = fds
        self.namespaces: bool = frame["namespaces"]
        self.sizes: dict[str, str] = frame["sizes"]
        self.kept: list[str] = frame["kept"]
        self.user: str = frame["user"]
        self.group: int | None = frame["group"]

    def find_user(self) -> None:
        """As engines do: by the image's own files. Raises CannotServe for a name that it does not know."""
        entry = next((each for each in pwd.getpwall() if self.user in (each.pw_name, str(each.pw_uid))), None)
        if entry is None and not self.user.isdigit():
            raise agent.CannotServe("InvalidSpec", f"The image has no user {self.user}.", "Name one that it has.")
        self.uid = entry.pw_uid if entry else int(self.user)
        self.gid = self.group if self.group is not None else entry.pw_gid if entry else 0
        member = [each.gr_gid for each in grp.getgrall() if entry and entry.pw_name in each.gr_mem]
        self.groups = sorted({self.gid, *member, *self.groups})


def confine(libc: "zygote.Libc", order: Order) -> None:
    """Leaves every namespace that others are in but the user's, and then every privilege."""
    own = zygote.CLONE_NEWNS | zygote.CLONE_NEWIPC | zygote.CLONE_NEWUTS
    libc.unshare(own | (zygote.CLONE_NEWNET if order.own_network else 0))
    if order.own_network:
        zygote.bring_up_loopback()
    libc.mount("", "/", "", zygote.MS_REC | MS_PRIVATE)
    zygote.mount_own(libc, order)
    cover(libc, order)
    zygote.drop_privileges(libc, order)
    os.chdir(zygote.FOLDER)


def cover(libc: "zygote.Libc", order: Order) -> None:
    """Puts memory of the fork's own where it may write, and on it again what is mounted there."""
    kept = {target: os.open(target, os.O_PATH | os.O_CLOEXEC) for target in sorted(order.kept)}
    for place, size in order.sizes.items():
        libc.mount("tmpfs", place, "tmpfs", zygote.MS_NOSUID | zygote.MS_NODEV, "mode=1777" + size)
    for target, fd in kept.items():
        source = f"/proc/self/fd/{fd}"
        if os.path.isdir(source):  # noqa: PTH112
            os.makedirs(target, exist_ok=True)  # noqa: PTH103
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
            os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC))
        libc.mount(source, target, "", zygote.MS_BIND | zygote.MS_REC)
        os.close(fd)


def become_keeper(libc: "zygote.Libc") -> None:
    """Leads a session of its own, inherits the orphans of its job, and has a folder to write to."""
    os.setsid()
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    folder = scratch(os.getpid())
    os.mkdir(folder, 0o700)  # noqa: PTH102
    os.environ.update(HOME=folder, TMPDIR=folder)
    if "tempfile" in sys.modules:
        sys.modules["tempfile"].tempdir = None  # type: ignore[attr-defined]  # it may have settled on another already


def scratch(pid: int) -> str:
    return f"{SCRATCH}/fork-{pid}"


def become_agent(libc: "zygote.Libc", gate: "agent.Frames", order: Order, prepared: "agent.Prepared") -> int:
    """The exit code."""
    if not order.namespaces:
        become_keeper(libc)
        return agent.serve(gate, prepared, everyone=Descendants())
    try:
        order.find_user()
    except agent.CannotServe as cannot:
        agent.refuse(gate, cannot)
        return agent.EXIT_CANNOT_SERVE
    confine(libc, order)
    return agent.serve(gate, prepared, everyone=OwnNamespace())


def run_fork(libc: "zygote.Libc", order: Order, prepared: "agent.Prepared") -> NoReturn:
    code = agent.EXIT_CANNOT_SERVE
    try:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        gate = agent.Frames(socket.socket(fileno=order.gate))
        agent.introduce(gate)
        code = become_agent(libc, gate, order, prepared)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


# --- The resident itself -----------------------------------------------------------------------------------------


def fork_on_request(gate: "agent.Gate", prepared: "agent.Prepared", guard: int) -> None:
    """Forks for each order, and tells the first process who begins and who has ended, until aircelld is gone."""
    libc = zygote.Libc()
    ours = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    wakeup = agent.wake_on_signals(signal.SIGCHLD)
    while True:
        readable, _, _ = select.select([gate.sock.fileno(), wakeup], [], [])
        if wakeup in readable:
            os.read(wakeup, 4096)
            for pid in reaped():
                os.write(guard, _PID.pack(-pid))
        if gate.sock.fileno() not in readable:
            continue
        received = gate.receive()
        if received is None:
            return
        order = Order(*received)
        if order.namespaces:
            libc.unshare(zygote.CLONE_NEWPID)
        child = os.fork()
        if child == 0:
            signal.set_wakeup_fd(-1)
            for fd in (gate.sock.fileno(), guard, wakeup, ours):
                os.close(fd)
            run_fork(libc, order, prepared)
        os.write(guard, _PID.pack(child))
        if order.namespaces:
            libc.setns(ours, zygote.CLONE_NEWPID)
        os.close(order.gate)


def reaped() -> "dict[int, int]":
    """Wait status by pid of all children that have ended."""
    found: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        found[pid] = status


class Guard:
    """PID 1, with which the kernel would end every fork: it stays until nobody is left, whatever becomes of the
    resident. Whoever it inherits from a fork that was killed, it kills."""

    def __init__(self, resident: int, told: int) -> None:
        self.resident = resident
        self.told = told
        self.forks: set[int] = set()
        self.code = 0

    def watch(self) -> int:
        """Returns when nobody is left: how the resident ended."""
        wakeup = agent.wake_on_signals(signal.SIGCHLD, signal.SIGTERM)
        while True:
            readable, _, _ = select.select([self.told, wakeup], [], [])
            came = os.read(wakeup, 4096) if wakeup in readable else b""
            self.bury()
            self.hear()  # after it: a resident that is dead has told all
            if signal.SIGTERM in came:
                send({*self.forks, self.resident} - {0}, signal.SIGTERM)
            left = children(os.getpid())
            send(left - self.forks - {self.resident}, signal.SIGKILL)
            if not left and not self.resident:
                return self.code

    def hear(self) -> None:
        """Who has begun and who has ended, in the resident's words."""
        try:
            data = os.read(self.told, 4096 * _PID.size)
        except BlockingIOError:
            return
        for (pid,) in _PID.iter_unpack(data):
            if pid > 0:
                self.forks.add(pid)
            else:
                self.forget(-pid)

    def bury(self) -> None:
        for pid, status in reaped().items():
            if pid == self.resident:
                self.code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
                self.resident = 0
            self.forget(pid)

    def forget(self, pid: int) -> None:
        self.forks.discard(pid)
        shutil.rmtree(scratch(pid), ignore_errors=True)


def main(run_dir: str = agent.RUN_DIR) -> int:
    told, guard = os.pipe()
    os.set_blocking(told, False)
    child = os.fork()
    if child:
        return Guard(child, told).watch()
    os.close(told)
    gate = agent.connect(run_dir)
    prepared = agent.make_ready(gate, run_dir)
    if prepared is None:
        return agent.EXIT_CANNOT_SERVE
    prepared.owns_pages = False  # parse follows parse: the CPU time would be taken from the one before
    gate.send(prepared.ready)
    fork_on_request(gate, prepared, guard)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
