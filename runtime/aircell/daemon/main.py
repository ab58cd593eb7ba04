"""The command ``aircelld``."""

from __future__ import annotations

import asyncio
import os
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any

import typer

from aircell.daemon import logs, service
from aircell.daemon.config import DEFAULT_FILE, load
from aircell.errors import AircellError, DaemonUnavailable

EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: nothing was started, and trying again is useless."""
EXIT_UNAVAILABLE = 69
"""EX_UNAVAILABLE of sysexits.h."""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aircelld {installed_version('aircell')}")
        raise typer.Exit


@app.command()
def aircelld(
    config: Annotated[Path | None, typer.Option(help=f"Configuration file; {DEFAULT_FILE} if it exists.")] = None,
    managed_containerd: Annotated[bool, typer.Option("--managed-containerd", help="Run a private containerd.")] = False,
    socket: Annotated[str | None, typer.Option(help="Listen on this unix socket.")] = None,
    state_dir: Annotated[str | None, typer.Option(help="Keep everything, run_dir included, below this folder.")] = None,
    idle_exit: Annotated[float | None, typer.Option(help="End after so many seconds without work.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.")] = None,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """Makes sandboxes for the workers of this node. What is given here goes before the configuration file."""
    log = {"level": log_level, "format": log_format}
    given: dict[str, Any] = {
        "managed_containerd": managed_containerd or None,
        "socket_path": socket,
        "state_dir": state_dir,
        "run_dir": f"{state_dir}/run" if state_dir else None,
        "idle_exit": idle_exit,
        "log": {name: value for name, value in log.items() if value} or None,
    }
    try:
        settings = load(config, {name: value for name, value in given.items() if value is not None})
        logs.configure(settings.log)
        _require_root()
        asyncio.run(service.run(settings))
    except AircellError as error:
        typer.echo(f"aircelld: {error}" + (f"\n{error.detail}" if error.detail else ""), err=True)
        raise typer.Exit(EXIT_CONFIG if error.family == "refused" else EXIT_UNAVAILABLE) from error


def _require_root() -> None:
    if os.geteuid() != 0:
        raise DaemonUnavailable("aircelld must run as root.", hint="Start it with sudo or as a system service.")


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="aircelld")


if __name__ == "__main__":
    main()
