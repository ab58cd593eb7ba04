"""Programs of a few hundred bytes for what needs no more: they need nothing of an image, and start at once.

Sources: elf(5); the System V ABI's supplements for both processors; the system call tables of Linux.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from aircell.errors import EngineUnavailable
from aircell.spec import RUN_DIR

_BASE = 0x400000
_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")


@dataclass(frozen=True)
class Machine:
    """A processor, by the names that others have for it."""

    elf: int
    oci: str


MACHINES: Mapping[str, Machine] = {"x86_64": Machine(62, "amd64"), "aarch64": Machine(183, "arm64")}
"""By what ``platform.machine()`` says."""

PAUSE: Mapping[str, bytes] = {
    "x86_64": bytes.fromhex(
        "b822000000 0f05"  # pause()
        "ebf7"  # from the start
    ),
    "aarch64": bytes.fromhex(
        # ppoll(NULL, 0, NULL, NULL, 0): there is no pause on this processor
        "000080d2 010080d2 020080d2 030080d2 040080d2 280980d2 010000d4f9ffff17"  # from the start
    ),
}
"""Waits for ever."""

_GATE = b"T" + struct.pack("<H", 1) + f"{RUN_DIR}/gate.sock".encode() + b"\0"
"""What follows the code of a shell: the word that it says, and the sockaddr_un of the gate."""

SHELL: Mapping[str, bytes] = {
    "x86_64": bytes.fromhex(
        "4881ec00010000 48c7042400400000 31ff 4889e6 31d2 41ba08000000"
        "b80e000000 0f05"  # rt_sigprocmask(SIG_BLOCK, {SIGTERM}, NULL, 8)
        "83cfff 4889e6 ba08000000 4531d2 b821010000 0f05"  # signalfd4(-1, {SIGTERM}, 8, 0)
        "89c5 bf01000000 89fe 31d2 b829000000 0f05"  # socket(AF_UNIX, SOCK_STREAM, 0)
        "89c3 89df 488d35ae000000 ba19000000 b82a000000 0f05"  # connect(leash, gate, 25)
        "85c0 0f8892000000"  # if it failed: exit_group(70)
        "891c24 c744240401000000 896c2408 c744240c01000000"
        "4889e7 be02000000 83caff b807000000 0f05"  # again: poll({leash, signals}, 2, -1)
        "66837c240600 753b 66837c240e00 74c7"  # on the leash: to the end; no signal: again
        "89ef 488d742410 ba80000000 31c0 0f05"  # read(signals, buffer, 128)
        "89df 488d3547000000 ba01000000 41ba00400000 4531c0 4531c9"
        "b82c000000 0f05 eb94"  # sendto(leash, "T", 1, MSG_NOSIGNAL, NULL, 0), and again
        "89df 488d742410 ba01000000 31c0 0f05"  # the end: read(leash, buffer, 1)
        "bf89000000 83f801 7505 0fb67c2410"  # the byte, or 137 when there is none
        "b8e7000000 0f05"  # exit_group
        "bf46000000 ebf2"
    )
    + _GATE,
    "aarch64": bytes.fromhex(
        "ff0304d1 090088d2 e90300f9 000080d2 e1030091 020080d2 030180d2"
        "e81080d2 010000d4"  # rt_sigprocmask(SIG_BLOCK, {SIGTERM}, NULL, 8)
        "00008092 e1030091 020180d2 030080d2 480980d2 010000d4"  # signalfd4(-1, {SIGTERM}, 8, 0)
        "f403002a 200080d2 210080d2 020080d2 c81880d2 010000d4"  # socket(AF_UNIX, SOCK_STREAM, 0)
        "f303002a 21060030 220380d2 681980d2 010000d4"  # connect(leash, gate, 25)
        "6005f837"  # if it failed: exit_group(70)
        "29008052 f30300b9 e90700b9 f40b00b9 e90f00b9 e0030091 410080d2 020080d2 030080d2 040080d2"
        "280980d2 010000d4"  # again: ppoll({leash, signals}, 2, NULL, NULL, 0)
        "e90f4079 29020035 e91f4079 29feff34"  # on the leash: to the end; no signal: again
        "e003142a e1430091 021080d2 e80780d2 010000d4"  # read(signals, buffer, 128)
        "e003132a c1020010 220080d2 030088d2 040080d2 050080d2"
        "c81980d2 010000d4 e3ffff17"  # sendto(leash, "T", 1, MSG_NOSIGNAL, NULL, 0), and again
        "e003132a e1430091 220080d2 e80780d2 010000d4"  # the end: read(leash, buffer, 1)
        "e90300aa 20118052 3f0500f1 41000054 e0434039"  # the byte, or 137 when there is none
        "c80b80d2 010000d4"  # exit_group
        "c0088052 fdffff17"
    )
    + _GATE,
}
"""First process of a shell, a container that a fork of a zygote fills, see ``docs/protocol.md``, part 2.

Its connection to the gate is the *leash*: aircelld passes the other end to the fork. The shell ends as the fork says,
or as one that was killed when the fork goes without a word; it says ``T`` when the engine asks it to stop; and when it
is killed the fork sees the leash close, and ends.
"""


def executable(program: Mapping[str, bytes], machine: str = "") -> bytes:
    """The ELF file of a program for a machine, by default this one. Raises EngineUnavailable for an unknown one."""
    machine = machine or platform.machine()
    if machine not in MACHINES:
        raise EngineUnavailable(
            f"there are no programs of Aircell's for {machine}.",
            hint=f"They are there for {' and '.join(MACHINES)}.",
        )
    code = program[machine]
    offset = _ELF_HEADER.size + _PROGRAM_HEADER.size
    size = offset + len(code)
    identification = b"\x7fELF" + bytes([2, 1, 1])  # 64-bit, little-endian, version 1; struct pads the rest with zeros
    header = _ELF_HEADER.pack(
        identification, 2, MACHINES[machine].elf, 1, _BASE + offset, _ELF_HEADER.size, 0, 0,
        _ELF_HEADER.size, _PROGRAM_HEADER.size, 1, 0, 0, 0,
    )  # fmt: skip
    segment = _PROGRAM_HEADER.pack(1, 5, 0, _BASE, _BASE, size, size, 0x1000)  # PT_LOAD, readable and executable
    return header + segment + code
