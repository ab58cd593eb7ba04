"""``aircell doctor``: what is wrong with this node, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from aircell.cli import checks, options, output
from aircell.cli.checks import Check
from aircell.client import Client

_STYLES = {"ok": "green", "warning": "yellow", "failed": "red"}


def doctor(
    image: Annotated[str | None, typer.Option(help="Also start a sandbox of this image and ask its Python.")] = None,
    python: Annotated[str, typer.Option(help="The interpreter in that image.")] = "python3",
    backend: options.Backend = "cri",
    as_json: options.Json = False,
    socket: options.Socket = options.SOCKET,
    start: options.Autostart = None,
) -> None:
    """Check this node; each finding that is not ok comes with its fix. Exit code 1 when something has failed."""
    found = list(_checks(options.client(socket, start), image, python, backend))
    if as_json:
        output.print_json([asdict(check) for check in found])
    else:
        _print(found)
    if any(check.result == "failed" for check in found):
        raise typer.Exit(1)


def _checks(client: Client, image: str | None, python: str, backend: str) -> Iterator[Check]:
    daemon, hello = checks.daemon(client)
    yield daemon
    yield from checks.engines(hello)
    yield from checks.zygotes(hello)
    yield from checks.engine_sockets()
    yield checks.cgroups()
    yield from checks.programs()
    yield checks.cni()
    if image is not None:
        yield from checks.python(client, image, python, backend)


def _print(found: list[Check]) -> None:
    console = output.console()
    for check in found:
        console.print(f"[{_STYLES[check.result]}]{check.result:<8}[/]", end="")
        console.print(f"{check.name}: {check.found}", markup=False, soft_wrap=True)
        if check.fix:
            console.print(f"        fix: {check.fix}", markup=False, soft_wrap=True)
