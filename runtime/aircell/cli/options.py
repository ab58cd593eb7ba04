"""Options that several commands share, and the client that they make."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from aircell import autostart
from aircell.client import DEFAULT_SOCKET, Client

Socket = Annotated[str, typer.Option(envvar="AIRCELL_SOCKET", help="The unix socket of aircelld.")]
Autostart = Annotated[
    bool | None,
    typer.Option(
        "--autostart/--no-autostart",
        help="Start aircelld when none answers; the default for root.",
        show_default=False,
    ),
]
Backend = Annotated[str, typer.Option(help="The backend of aircelld to use.")]
Json = Annotated[bool, typer.Option("--json", help="For other programs.")]

SOCKET = DEFAULT_SOCKET
PATIENCE = 30.0
"""Seconds for an answer: aircelld may have to ask an engine first."""


def client(socket: str, start: bool | None, *, patience: float = PATIENCE) -> Client:
    """A client that starts aircelld, or does not, as ``--autostart`` says."""
    wanted = os.geteuid() == 0 if start is None else start
    return Client(socket, autostart=autostart.command(socket) if wanted else None, timeout=patience)
