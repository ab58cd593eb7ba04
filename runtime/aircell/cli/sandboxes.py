"""Commands about sandboxes that exist: ps, logs, inspect, stop, prune."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from aircell.cli import options, output
from aircell.cli.options import client
from aircell.status import ExitStatus

SandboxId = Annotated[str, typer.Argument(metavar="SANDBOX", help="Its id, or the beginning of it.")]
_LABEL_PREFIX = "aircell.dev/"
_OWN_COLUMNS = {"sandbox", "node", "role", "owner", "image"}
_SHORT_DIGEST = len("sha256:0123456789ab")


def ps(
    all: Annotated[bool, typer.Option("--all", "-a", help="Also those that have ended.")] = False,
    as_json: options.Json = False,
    socket: options.Socket = options.SOCKET,
) -> None:
    """List sandboxes."""
    found = client(socket, False).ask("ps", all=all)["sandboxes"]
    if as_json:
        output.print_json(found)
        return
    now = time.time()
    columns = ["SANDBOX", "STATE", "KIND", "ROLE", "AGE", "BACKEND", "IMAGE", "OF"]
    output.print_table(columns, [ps_row(sandbox, now) for sandbox in found])


def ps_row(sandbox: Mapping[str, Any], now: float) -> list[str]:
    """One line of ``ps``."""
    identity = {
        name.removeprefix(_LABEL_PREFIX): value
        for name, value in sandbox["labels"].items()
        if name.startswith(_LABEL_PREFIX) and name.removeprefix(_LABEL_PREFIX) not in _OWN_COLUMNS
    }
    return [
        sandbox["id"],
        _state(sandbox),
        sandbox["kind"],
        sandbox["role"],
        output.duration(now - sandbox["created_at"]),
        sandbox["backend"],
        _image(sandbox),
        " ".join(f"{name}={value}" for name, value in identity.items()) or f"pid {sandbox['owner']['pid']}",
    ]


def _image(sandbox: Mapping[str, Any]) -> str:
    """As it was asked for, with the beginning of what that turned out to be."""
    digest = sandbox["digest"].rpartition("@")[2][:_SHORT_DIGEST]
    name = sandbox["image"].partition("@")[0]
    return f"{name}@{digest}" if digest else name


def _state(sandbox: Mapping[str, Any]) -> str:
    if sandbox["error"]:
        return f"failed: {sandbox['error']['kind']}"
    if sandbox["exit"] is not None:
        return f"exited: {ending(ExitStatus.from_wire(sandbox['exit']))}"
    return str(sandbox["state"])


def ending(exit: ExitStatus) -> str:
    """How a job ended, in a word or two."""
    if exit.oom_killed:
        return "out of memory"
    if exit.code is not None:
        return str(exit.code)
    return f"signal {exit.signal}" if exit.signal is not None else "unknown"


def logs(sandbox: SandboxId, socket: options.Socket = options.SOCKET) -> None:
    """Print what the agent of a sandbox wrote; the job's own output goes to whoever launched it."""
    typer.echo(client(socket, False).ask("logs", sandbox=sandbox)["log"], nl=False)


def inspect(sandbox: SandboxId, socket: options.Socket = options.SOCKET) -> None:
    """Print all that is known of a sandbox, as JSON."""
    output.print_json(client(socket, False).ask("inspect", sandbox=sandbox)["sandbox"])


def stop(
    sandbox: SandboxId,
    grace: Annotated[
        float | None, typer.Option(min=0, help="Seconds between TERM and KILL; its own if not given.")
    ] = None,
    socket: options.Socket = options.SOCKET,
) -> None:
    """End a sandbox, and return when nothing of it is left."""
    asking = client(socket, False)
    if grace is None:
        grace = asking.ask("inspect", sandbox=sandbox)["sandbox"]["spec"]["stop_grace"]
    asking.timeout += grace
    asking.ask("stop", sandbox=sandbox, grace=grace)


def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list it.")] = False,
    as_json: options.Json = False,
    socket: options.Socket = options.SOCKET,
) -> None:
    """Remove what is left of sandboxes that nobody looks after."""
    removed = client(socket, False, patience=600).ask("prune", dry_run=dry_run)["removed"]
    if as_json:
        output.print_json(removed)
        return
    for leftover in removed:
        typer.echo(f"{leftover['sandbox']}  {leftover['why']}")
    verb = "would be removed" if dry_run else "removed"
    output.note(f"{len(removed)} {verb}")
