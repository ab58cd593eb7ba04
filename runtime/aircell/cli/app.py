"""Puts the commands together: ours, and those of other packages under the entry point group ``aircell.cli``.

Such an entry point names a function that Typer can make a command of; its name is the command's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import entry_points, version
from typing import Annotated

import typer

from aircell.cli import doctor, image_build, images, pool, run, sandboxes
from aircell.spec import SandboxSpec

GROUP = "aircell.cli"


def build() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        help="Sandboxes of this node. Exit code: 0, or 125 when Aircell failed or refused, or 2 for a wrong "
        "command line; `run` passes on the command's own.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_common)
    app.command(context_settings={"allow_interspersed_args": False})(run.run)
    for command in _COMMANDS:
        app.command()(command)
    app.add_typer(image_build.app, name="image")
    app.add_typer(pool.app, name="pool")
    app.add_typer(images.app, name="images")
    for entry in entry_points(group=GROUP):
        app.command(name=entry.name)(entry.load())
    return app


def schema() -> None:
    """Print the JSON schema of a sandbox specification."""
    typer.echo(json.dumps(SandboxSpec.model_json_schema(), indent=2))


_COMMANDS: tuple[Callable[..., None], ...] = (
    sandboxes.ps,
    sandboxes.logs,
    sandboxes.inspect,
    sandboxes.stop,
    sandboxes.prune,
    images.pull,
    schema,
    doctor.doctor,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aircell {version('aircell')}")
        raise typer.Exit


def _common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass
