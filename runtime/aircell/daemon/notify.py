"""Telling systemd how far aircelld is, sd_notify(3)."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Sends ``state`` (``READY=1``, ``STOPPING=1``) to the service manager, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # the abstract namespace, unix(7)
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(), address)
