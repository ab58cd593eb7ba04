"""What a program finds of the walls around it, as seen from inside."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import struct
from pathlib import Path
from typing import Any, cast

import pytest

from aircell.backends.base import Backend
from aircell.errors import ImageError, UnsupportedSpec
from aircell.spec import Dns, SandboxSpec, Security
from tests.contract.harness import IMAGE, Harness

pytestmark = pytest.mark.asyncio(loop_scope="session")

NODE_HAS_APPARMOR = Path("/sys/kernel/security/apparmor/profiles").exists()

STATUS = """
import json, os
status = dict(line.rstrip().split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
"""


@pytest.mark.field("security.profile: restricted")
async def test_restricted_is_the_default(harness: Harness) -> None:
    report = await harness.report(
        STATUS
        + """
names = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"]
print(json.dumps({name: int(status[name], 16) for name in names}))
"""
    )
    assert report == {
        "CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": 0, "CapAmb": 0, "NoNewPrivs": 1, "Seccomp": 2,
    }  # fmt: skip


@pytest.mark.field("user", "group", "groups")
async def test_user_and_groups(harness: Harness) -> None:
    program = "import json, os; print(json.dumps([os.getresuid(), os.getresgid(), sorted(os.getgroups())]))"
    default = await harness.report(program)
    assert default == [[50000] * 3, [0] * 3, [0]]
    numbers = await harness.report(program, user="1234", group=56, groups=(7, 8))
    assert numbers == [[1234] * 3, [56] * 3, [7, 8, 56]]
    name = await harness.report(program, user="games", group=None)
    assert name == [[5] * 3, [60] * 3, [60]]


@pytest.mark.field("security.profile: baseline")
async def test_baseline_keeps_the_engines_capabilities_but_no_new_privileges(harness: Harness) -> None:
    report = await harness.report(
        STATUS + "print(json.dumps([int(status['CapEff'], 16), status['NoNewPrivs']]))",
        user="0",
        security=Security(profile="baseline"),
    )
    chown, sys_admin = 1 << 0, 1 << 21
    assert report[0] & chown
    assert not report[0] & sys_admin
    assert report[1] == "1"


@pytest.mark.field("security.add_capabilities, for user 0")
async def test_added_capabilities_come_on_top_of_none(harness: Harness) -> None:
    report = await harness.report(
        STATUS + "print(json.dumps([int(status[name], 16) for name in ('CapEff', 'CapBnd')]))",
        user="0",
        security=Security(add_capabilities=("NET_BIND_SERVICE",)),
    )
    assert report == [1 << 10, 1 << 10]


@pytest.mark.field("security.add_capabilities, for another user")
async def test_added_capabilities_of_another_user(harness: Harness) -> None:
    report = await harness.report(
        STATUS + "print(json.dumps(int(status['CapEff'], 16)))",
        security=Security(add_capabilities=("NET_BIND_SERVICE",)),
    )
    assert report == 1 << 10


@pytest.mark.field("security.seccomp: unconfined")
async def test_seccomp_can_be_turned_off_by_name_only(harness: Harness) -> None:
    report = await harness.report(
        STATUS + "print(json.dumps(status['Seccomp']))", security=Security(seccomp="unconfined")
    )
    assert report == "0"


@pytest.mark.field("security.seccomp: runtime-default")
async def test_the_default_seccomp_profile_filters(harness: Harness) -> None:
    program = """
import ctypes, json
libc = ctypes.CDLL(None, use_errno=True)
libc.unshare(0x10000000)  # CLONE_NEWUSER
print(json.dumps(ctypes.get_errno()))
"""
    assert await harness.report(program) == errno.EPERM


WRITE = """
import json
def attempt(path):
    try:
        open(path, "w").close()
    except OSError as error:
        return error.errno
    return 0
print(json.dumps([attempt("/etc/new"), attempt("/new")]))
"""


@pytest.mark.field("security.read_only_root")
async def test_the_root_is_read_only(harness: Harness) -> None:
    assert await harness.report(WRITE, user="0") == [errno.EROFS, errno.EROFS]


async def test_the_root_can_be_made_writable(harness: Harness) -> None:
    security = Security(read_only_root=False)
    assert await harness.report(WRITE, user="0", security=security) == [0, 0]


async def test_the_kernels_files_are_masked_or_read_only(harness: Harness) -> None:
    program = """
import json, os
def size(path):
    if not os.path.exists(path):
        return 0
    if os.path.isdir(path):
        return len(os.listdir(path))
    with open(path, "rb") as file:
        return len(file.read(64))
def write(path):
    try:
        open(path, "w").close()
    except OSError as error:
        return error.errno
masked = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"]
read_only = ["/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity"]
print(json.dumps([sum(map(size, masked)), [write(path) for path in read_only if os.path.exists(path)]]))
"""
    masked, written = await harness.report(program, user="0")
    assert masked == 0
    assert len(written) >= 2
    assert set(written) == {errno.EROFS}


@pytest.mark.first_kind("a job is a child of its agent: test_zygotes.py asks the same, beside a sibling")
async def test_only_its_own_processes_are_visible(harness: Harness) -> None:
    program = "import json, os; print(json.dumps([os.getpid(), [p for p in os.listdir('/proc') if p.isdecimal()]]))"
    assert await harness.report(program) == [1, ["1"]]


@pytest.mark.field("env")
async def test_environment(harness: Harness) -> None:
    wanted = {"UNICODE": "grüße 🚀\nnext", "EMPTY": "", "LARGE": "x" * 100_000, "EQUALS": "a=b=c"}
    program = f"import json, os; print(json.dumps({{name: os.environ.get(name) for name in {list(wanted)}}}))"
    assert await harness.report(program, env=wanted) == wanted


async def test_nothing_of_the_nodes_environment_is_inside(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_SECRET", "hunter2")
    names = await harness.report("import json, os; print(json.dumps(sorted(os.environ)))")
    assert set(names) <= {"HOME", "HOSTNAME", "LANG", "PATH"}


# --- The network ---

NETWORK = """
import json, os, socket
interfaces = sorted(name for _, name in socket.if_nameindex())
def reach(address):
    try:
        socket.create_connection(address, timeout=3).close()
    except OSError as error:
        return type(error).__name__ if isinstance(error, TimeoutError) else error.errno
    return 0
"""


@pytest.fixture
def listener() -> socket.socket:
    """Something on the node that listens on every address of it."""
    return socket.create_server(("0.0.0.0", 0))


@pytest.mark.field("network: none")
async def test_network_none_has_loopback_only(harness: Harness, listener: socket.socket) -> None:
    with listener:
        port = listener.getsockname()[1]
        program = (
            NETWORK
            + f"""
server = socket.create_server(("127.0.0.1", 0))
print(json.dumps([interfaces, reach(("127.0.0.1", {port})), reach(("{harness.gateway}", {port})), \
reach(server.getsockname()), os.path.exists("/sys/class/net/eth0")]))
"""
        )
        report = await harness.report(program, network="none")
    assert report == [["lo"], errno.ECONNREFUSED, errno.ENETUNREACH, 0, False]


@pytest.mark.field("network: pod")
async def test_network_pod_has_an_address_and_a_way_to_the_node(harness: Harness, listener: socket.socket) -> None:
    with listener:
        port = listener.getsockname()[1]
        program = (
            NETWORK
            + f"""
route = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
route.connect(("{harness.gateway}", 9))
print(json.dumps([interfaces, route.getsockname()[0], reach(("{harness.gateway}", {port})), \
reach(("127.0.0.1", {port}))]))
"""
        )
        interfaces, address, gateway, loopback = await harness.report(program, network="pod")
    assert interfaces == ["eth0", "lo"]
    assert address.rpartition(".")[0] == harness.gateway.rpartition(".")[0]
    assert (gateway, loopback) == (0, errno.ECONNREFUSED)


@pytest.mark.field("network: host")
async def test_network_host_is_the_nodes(harness: Harness, listener: socket.socket) -> None:
    with listener:
        port = listener.getsockname()[1]
        program = NETWORK + f"print(json.dumps([interfaces, reach(('127.0.0.1', {port}))]))"
        interfaces, reached = await harness.report(program, network="host")
    assert interfaces == sorted(name for _, name in socket.if_nameindex())
    assert reached == 0


@pytest.mark.field("dns")
async def test_dns(harness: Harness) -> None:
    program = "import json; print(json.dumps(open('/etc/resolv.conf').read().split()))"
    dns = Dns(servers=("192.0.2.53",), searches=("example.test",), options=("ndots:2",))
    report = await harness.report(program, network="pod", dns=dns)
    assert sorted(report) == sorted(["search", "example.test", "nameserver", "192.0.2.53", "options", "ndots:2"])


class Names(asyncio.DatagramProtocol):
    """A name server that has one address for every name. Source: RFC 1035, section 4."""

    def __init__(self, address: str) -> None:
        self.address = socket.inet_aton(address)
        self.asked: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, query: bytes, sender: tuple[str, int]) -> None:
        end = query.index(b"\0", 12) + 5
        self.asked.append(query[12 : end - 5])
        wants_ipv4 = query[end - 4 : end - 2] == b"\0\x01"
        head = query[:2] + b"\x81\x80" + struct.pack(">4H", 1, wants_ipv4, 0, 0) + query[12:end]
        record = b"\xc0\x0c\0\x01\0\x01" + struct.pack(">IH", 60, 4) + self.address
        self.transport.sendto(head + record * wants_ipv4, sender)


@pytest.mark.field("network: pod", "dns")
async def test_names_are_asked_of_the_servers_given(harness: Harness) -> None:
    """On the network of a pod, whose gateway the name server is."""
    await harness.run("", network="pod")  # the gateway has its address from now on
    loop = asyncio.get_running_loop()
    transport, names = await loop.create_datagram_endpoint(lambda: Names("192.0.2.7"), local_addr=(harness.gateway, 53))
    try:
        dns = Dns(servers=(harness.gateway,), searches=("example.test",))
        program = "import json, socket; print(json.dumps(socket.gethostbyname('db')))"
        assert await harness.report(program, network="pod", dns=dns) == "192.0.2.7"
    finally:
        transport.close()
    assert b"\x02db\x07example\x04test" in names.asked


# --- What this engine cannot do ---


@pytest.mark.field("runtime_handler")
@pytest.mark.parametrize(
    "field",
    [{"runtime_handler": "no-such-runtime"}, {"runtime_handler": "no-such-runtime", "network": "pod"}],
)
async def test_runtime_handler(harness: Harness, field: dict[str, Any]) -> None:
    """The engine's own works, as in every other test here, and one that it does not have is refused."""
    backend = harness.backend
    await backend.check(SandboxSpec(image=IMAGE, **{**field, "runtime_handler": harness.runtime_handler}))
    with pytest.raises(UnsupportedSpec, match="no-such-runtime"):
        await backend.check(SandboxSpec(image=IMAGE, **field))


async def test_apparmor_is_refused_where_the_kernel_has_none(backend: Backend) -> None:
    assert not NODE_HAS_APPARMOR, "on a node with AppArmor: extend this test"
    with pytest.raises(UnsupportedSpec, match="AppArmor"):
        await backend.check(SandboxSpec(image=IMAGE, security=Security(apparmor="runtime-default")))


async def test_a_user_that_the_image_does_not_have(harness: Harness) -> None:
    """Some engines see it when they make the container, others when they start it."""
    plan = harness.plan("", user="nobody-here")
    with pytest.raises(ImageError, match=r"nobody-here.*`user`"):
        await harness.start_plan(plan)
    await harness.backend.remove(plan.id)
    assert await harness.backend.sandboxes({}) == []


@pytest.mark.field("security.seccomp: localhost/PATH")
async def test_a_seccomp_profile_of_the_nodes(harness: Harness, tmp_path: Path) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOTTY}],
    }
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    program = """
import json, os
try:
    os.mkdir("/tmp/new")
except OSError as error:
    print(json.dumps(error.errno))
"""
    security = Security(seccomp=f"localhost{tmp_path}/profile.json")
    assert await harness.report(program, security=security) == errno.ENOTTY


async def test_a_seccomp_profile_that_the_node_does_not_have(backend: Backend) -> None:
    with pytest.raises(UnsupportedSpec, match=r"/no/such\.json"):
        await backend.check(SandboxSpec(image=IMAGE, security=Security(seccomp="localhost/no/such.json")))
