"""The CRI's log format: ``TIME STREAM TAG CONTENT`` a line, where TAG ``P`` means that the line goes on in the next.

Source: https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md
"""

from __future__ import annotations

import os
from pathlib import Path

_FRAMING = 3
"""A line of output may be cut into many of the log, so more than ``max_bytes`` has to be read to keep as much."""


def tail(path: Path, max_bytes: int) -> str:
    """The last ``max_bytes`` of the output in a log file; empty when there is no file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - _FRAMING * max_bytes - 4096)
            file.seek(start)
            data = file.read()
    except FileNotFoundError:
        return ""
    if start:
        data = data.partition(b"\n")[2]
    return strip_framing(data)[-max_bytes:].decode(errors="replace")


def strip_framing(data: bytes) -> bytes:
    """The output alone, stdout and stderr in the order in which they came."""
    content = bytearray()
    for line in data.splitlines():
        _, _, rest = line.partition(b" ")
        _, _, rest = rest.partition(b" ")
        tag, _, text = rest.partition(b" ")
        content += text
        if tag.split(b":")[0] != b"P":
            content += b"\n"
    return bytes(content)
