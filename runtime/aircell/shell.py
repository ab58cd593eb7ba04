"""First process of a shell: a container that a fork of a zygote fills, see ``docs/protocol.md``, part 2.

One file, standard library only. Its connection to the gate is the *leash*: aircelld passes the other end to the fork.
The shell ends as the fork says, or as one that was killed when the fork goes without a word; and when the shell is
killed the fork sees the leash close, and ends.
"""

import os
import signal
import socket

GATE = "/run/aircell/gate.sock"
TERM = b"T"
"""What the shell says when the engine asks it to stop."""


def main(gate: str = GATE) -> int:
    """Waits for the end of the job; its exit code."""
    leash = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: leash.send(TERM))
    leash.connect(gate)
    code = leash.recv(1)
    return code[0] if code else 128 + signal.SIGKILL


if __name__ == "__main__":
    os._exit(main())
