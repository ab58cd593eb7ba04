"""Commands about images on the node: pull, images, images prune."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from aircell.cli import options, output
from aircell.cli.options import client

_PRUNE_PATIENCE = 600.0
"""Seconds: an engine may take a while to remove large images."""


def pull(
    image: Annotated[str, typer.Argument(metavar="IMAGE")],
    backend: options.Backend = "cri",
    credentials: Annotated[str | None, typer.Option(help="Their name in aircelld's configuration.")] = None,
    socket: options.Socket = options.SOCKET,
    start: options.Autostart = None,
) -> None:
    """Pull an image to the node."""
    answers = client(socket, start).call(
        "pull", backend=backend, image=image, credentials=credentials, pull_policy="always"
    )
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=output.console(stderr=True)) as progress:
        bar = progress.add_task(f"pulling {image}", total=None)
        for answer in answers:
            if "image" in answer:
                pulled = answer["image"]
            elif "event" in answer:
                progress.update(bar, completed=answer["done"], total=answer["total"] or None)
    typer.echo(pulled["digest"] or pulled["id"])


app = typer.Typer(invoke_without_command=True)


@app.callback()
def images(
    context: typer.Context,
    backend: options.Backend = "cri",
    as_json: options.Json = False,
    socket: options.Socket = options.SOCKET,
    start: options.Autostart = None,
) -> None:
    """List the images on the node, or remove unused ones."""
    if context.invoked_subcommand:
        return
    found = client(socket, start).ask("images", backend=backend)["images"]
    if as_json:
        output.print_json(found)
        return
    output.print_table(["IMAGE", "ID", "SIZE"], sorted(row for image in found for row in image_rows(image)))


@app.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    backend: options.Backend = "cri",
    as_json: options.Json = False,
    socket: options.Socket = options.SOCKET,
) -> None:
    """Remove the images that aircelld pulled or built, and that are neither in use nor pinned."""
    aircelld = client(socket, False, patience=_PRUNE_PATIENCE)
    removed = aircelld.ask("prune_images", backend=backend, dry_run=dry_run)["removed"]
    if as_json:
        output.print_json(removed)
        return
    now = time.time()
    rows = [
        [name, id, size, output.duration(now - image["last_used"])]
        for image in removed
        for name, id, size in image_rows(image)
    ]
    output.print_table(["IMAGE", "ID", "SIZE", "LAST USED"], rows)


def image_rows(image: dict[str, Any]) -> list[list[str]]:
    """A line for each name of an image."""
    id = image["id"].removeprefix("sha256:")[:12]
    return [[name, id, output.size(image["size"])] for name in image["tags"] or [image["digest"] or image["id"]]]
