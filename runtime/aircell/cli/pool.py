"""Commands about warm sandboxes: pool ls, pool drain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from aircell.cli import options, output
from aircell.cli.options import client

app = typer.Typer(help="Sandboxes that are kept ready for the next job of their kind.", no_args_is_help=True)

_COLUMNS = ["POOL", "KIND", "BACKEND", "IMAGE", "READY", "PODS", "HITS", "MISSES", "P50", "P95", "MEMORY"]


@app.command()
def ls(as_json: options.Json = False, socket: options.Socket = options.SOCKET) -> None:
    """List the pools: how many are ready, how often one was, how long a job then waited, and what they take."""
    pools = client(socket, False).ask("pools")["pools"]
    if as_json:
        output.print_json(pools)
        return
    output.print_table(_COLUMNS, [row(pool) for pool in pools])


@app.command()
def drain(socket: options.Socket = options.SOCKET) -> None:
    """End all pools. The next sandboxes are made anew, and new pools begin after them."""
    client(socket, False, patience=60).ask("drain")


def row(pool: Mapping[str, Any]) -> list[str]:
    """One line of ``pool ls``."""
    return [
        *(pool["shape"], pool["kind"], pool["backend"], pool["image"]),
        f"{pool['ready']}/{pool['target']}",
        *(str(pool["pods"]), str(pool["hits"]), str(pool["misses"])),
        *(_milliseconds(pool["wait_p50"]), _milliseconds(pool["wait_p95"])),
        output.size(pool["memory"]),
    ]


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"
