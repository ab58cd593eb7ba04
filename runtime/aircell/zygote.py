"""A zygote: prepares the interpreter once, and then forks for each job into a container that waits for it.

One file, standard library only; it lies beside ``agent.py``, whose work it does in the fork. It speaks the messages of
``docs/protocol.md``, part 2. It is user 0 of a user namespace, with just the capabilities that a fork needs to move
into its shell and to give them up there; aircelld believes nothing of this, and looks at the fork itself before it
hands a job over.

Sources: pid_namespaces(7), mount_namespaces(7), capabilities(7), seccomp(2); the kernel's ``networking/``; runc's
``libcontainer/rootfs_linux.go`` for how paths are masked.
"""

import ctypes
import errno
import fcntl
import importlib.util
import os
import platform
import signal
import socket
import struct
import sys
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from aircell import agent
else:  # by its path: it is nothing that code of the image could import
    _spec = importlib.util.spec_from_file_location("aircell_agent", __file__.replace("zygote.py", "agent.py"))
    agent = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(agent)

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_NEW = 0x7E020000
"""Every flag of clone(2) for a namespace."""

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC = 1, 2, 4, 8, 32, 4096, 16384
FOLDER = os.getcwd()  # noqa: PTH109 - of the image, which joining the shell's files leaves
HARMLESS = MS_NOSUID | MS_NODEV | MS_NOEXEC
SHM_SIZE = "64m"
"""Of /dev/shm where nothing is said about it: what engines give."""

PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
CAPABILITY_VERSION_3 = 0x20080522

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


class Libc:
    """The C library's functions, which raise OSError."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None, use_errno=True)

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._library, name)

        def call(*arguments: Any) -> None:
            if function(*arguments) != 0:
                number = ctypes.get_errno()
                raise OSError(number, f"{name}: {os.strerror(number)}")

        return call

    def mount(self, source: str, target: str, kind: str, flags: int, data: str = "") -> None:
        """mount(2)."""
        self.__getattr__("mount")(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())


# --- The second filter -------------------------------------------------------------------------------------------


class Machine:
    """What a seccomp filter has to know of a machine: audit.h's number for it, and its numbers of system calls."""

    def __init__(self, audit: int, denied: "dict[str, int]", clone: int) -> None:
        self.audit = audit
        self.denied = denied
        self.clone = clone


COMMON = {
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "mount_setattr": 442, "quotactl_fd": 443, "open_tree_attr": 467,
}  # fmt: skip
"""The same on every machine, as all that are newer than Linux 5.1."""
CLONE3 = 435
MACHINES = {
    "x86_64": Machine(
        0xC000003E,
        {
            "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308,
            "sethostname": 170, "setdomainname": 171, "bpf": 321, "perf_event_open": 298, "fanotify_init": 300,
            "quotactl": 179, "syslog": 103, "lookup_dcookie": 212, "keyctl": 250, "add_key": 248, "request_key": 249,
        },
        clone=56,
    ),
    "aarch64": Machine(
        0xC00000B7,
        {
            "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "unshare": 97, "setns": 268,
            "sethostname": 161, "setdomainname": 162, "bpf": 280, "perf_event_open": 241, "fanotify_init": 262,
            "quotactl": 60, "syslog": 116, "lookup_dcookie": 18, "keyctl": 219, "add_key": 217, "request_key": 218,
        },
        clone=220,
    ),
}  # fmt: skip
"""What the engine's default profile permits to whoever has SYS_ADMIN or SYS_CHROOT, and to nobody else."""

X32_BIT = 0x40000000
ALLOW, DENY = 0x7FFF0000, 0x00050000
LOAD, JUMP_EQUAL, JUMP_GREATER, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
OFFSET_NUMBER, OFFSET_ARCH, OFFSET_ARGUMENT = 0, 4, 16


def filter_program(machine: Machine) -> bytes:
    """The BPF program: EPERM for what is denied, ENOSYS for clone3, whose flags no filter can see, and for other ABIs.

    A library falls back from ENOSYS to clone, as it does under the engine's own filter.
    """
    denied = sorted({*machine.denied.values(), *COMMON.values()})
    missing = [(RETURN, 0, 0, DENY | errno.ENOSYS)]
    program = [
        (LOAD, 0, 0, OFFSET_ARCH),
        (JUMP_EQUAL, 1, 0, machine.audit),
        *missing,
        (LOAD, 0, 0, OFFSET_NUMBER),
        (JUMP_GREATER, 0, 1, X32_BIT),
        *missing,
        (JUMP_EQUAL, 0, 1, CLONE3),
        *missing,
        *(step for number in denied for step in ((JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, DENY | errno.EPERM))),
        (JUMP_EQUAL, 0, 3, machine.clone),
        (LOAD, 0, 0, OFFSET_ARGUMENT),
        (JUMP_ANY_BIT, 0, 1, CLONE_NEW),
        (RETURN, 0, 0, DENY | errno.EPERM),
        (RETURN, 0, 0, ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in program)


def install_filter(libc: Libc) -> None:
    """From here on for this process and all that come from it; raises OSError."""
    program = filter_program(MACHINES[platform.machine()])
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HP", len(program) // 8, ctypes.addressof(buffer))
    libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0)


# --- Into the shell ----------------------------------------------------------------------------------------------


class Confinement:
    """What is a fork's own, and whom it becomes."""

    def __init__(self, frame: "dict[str, Any]") -> None:
        self.own_network: bool = frame["own_network"]
        self.own_shm: bool = frame["own_shm"]
        self.masked: list[str] = frame["masked"]
        self.read_only: list[str] = frame["read_only"]
        self.uid: int = frame["uid"]
        self.gid: int = frame["gid"]
        self.groups: list[int] = frame["groups"]


class Order(Confinement):
    """What a fork becomes: aircelld's ``fork`` frame and its descriptors."""

    def __init__(self, frame: "dict[str, Any]", fds: "list[int]") -> None:
        super().__init__(frame)
        self.mounts, self.leash, self.stdout, self.stderr = fds
        self.hostname: str = frame["hostname"]
        self.beforehand: bool = frame["beforehand"]


def enter(libc: Libc, order: Order) -> None:
    """Joins the shell's files, and leaves every namespace that the pod's containers share but the user's."""
    os.dup2(order.stdout, 1)
    os.dup2(order.stderr, 2)
    libc.setns(order.mounts, CLONE_NEWNS)
    libc.unshare(CLONE_NEWIPC | CLONE_NEWUTS | (CLONE_NEWNET if order.own_network else 0))
    libc.sethostname(order.hostname.encode(), len(order.hostname))
    os.environ["HOSTNAME"] = order.hostname
    if order.own_network:
        bring_up_loopback()


def bring_up_loopback() -> None:
    """See netdevice(7)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        name = b"lo"
        flags = struct.unpack("16sH14x", fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("16sH14x", name, 0)))[1]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", name, flags | IFF_UP))


def mount_own(libc: Libc, order: Confinement) -> None:
    """Views of this fork's own namespaces over those of the shell and the pod, with the same parts hidden."""
    libc.mount("proc", "/proc", "proc", HARMLESS)
    for path in order.masked:
        mask(libc, path)
    for path in order.read_only:
        if os.path.exists(path):  # noqa: PTH110
            libc.mount(path, path, "", MS_BIND | MS_REC)
            libc.mount(path, path, "", MS_BIND | MS_REC | MS_REMOUNT | MS_RDONLY | HARMLESS)
    libc.mount("mqueue", "/dev/mqueue", "mqueue", HARMLESS)
    if not order.own_shm:
        libc.mount("shm", "/dev/shm", "tmpfs", HARMLESS, "mode=1777,size=" + SHM_SIZE)  # noqa: S108 - private


def mask(libc: Libc, path: str) -> None:
    if os.path.isdir(path):  # noqa: PTH112
        libc.mount("tmpfs", path, "tmpfs", MS_RDONLY | HARMLESS, "size=0")
    elif os.path.exists(path):  # noqa: PTH110
        libc.mount("/dev/null", path, "", MS_BIND)


def drop_privileges(libc: Libc, order: Confinement) -> None:
    """Becomes the shell's user, with no capability and none to be had, under a filter of its own."""
    for number in range(64):
        try:
            libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            break  # past the last that this kernel has
    os.setgroups(order.groups)
    os.setresgid(order.gid, order.gid, order.gid)
    os.setresuid(order.uid, order.uid, order.uid)
    libc.capset(struct.pack("Ii", CAPABILITY_VERSION_3, 0), struct.pack("6I", *[0] * 6))  # for user 0 has kept them
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    install_filter(libc)


def become_agent(libc: Libc, order: Order, prepared: "agent.Prepared") -> int:
    """The fork, from its first line to the end of its job: the exit code for the shell."""
    enter(libc, order)
    gate = agent.connect(agent.RUN_DIR)
    if gate.receive() is None:  # that aircelld has put this process into the shell's control groups
        return agent.EXIT_CANNOT_SERVE
    mount_own(libc, order)
    drop_privileges(libc, order)
    os.chdir(FOLDER)
    prepared.owns_pages = order.beforehand  # else a job is on its way, which needs the CPU more
    return agent.serve(gate, prepared, socket.socket(fileno=order.leash))


# --- The zygote itself -------------------------------------------------------------------------------------------


def run_fork(libc: Libc, order: Order, prepared: "agent.Prepared") -> NoReturn:
    code = agent.EXIT_CANNOT_SERVE
    try:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
        code = become_agent(libc, order, prepared)
        os.write(order.leash, bytes([code]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def fork_on_request(gate: "agent.Gate", prepared: "agent.Prepared") -> None:
    """Forks for each order, until aircelld is gone."""
    libc = Libc()
    ours = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    while True:
        received = gate.receive()
        if received is None:
            return
        frame, fds = received
        libc.unshare(CLONE_NEWPID)
        child = os.fork()
        if child == 0:
            gate.sock.close()
            run_fork(libc, Order(frame, fds), prepared)
        libc.setns(ours, CLONE_NEWPID)
        for fd in fds:
            os.close(fd)


def keep(child: int) -> int:
    """PID 1, with which the kernel would end every fork: reaps until nobody is left, whatever becomes of the zygote."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    code = 0
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return code
        if pid == child:
            code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def main(run_dir: str = agent.RUN_DIR) -> int:
    child = os.fork()
    if child:
        return keep(child)
    gate = agent.connect(run_dir)
    prepared = agent.make_ready(gate, run_dir)
    if prepared is None:
        return agent.EXIT_CANNOT_SERVE
    gate.send(prepared.ready)
    fork_on_request(gate, prepared)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
