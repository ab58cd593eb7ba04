"""``aircell run``: a command in a sandbox, attached to this terminal."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError

from aircell.cli import options, output
from aircell.cli.attach import Attached
from aircell.cli.options import client
from aircell.cli.progress import Reporter
from aircell.errors import InvalidSpec
from aircell.spec import Job, LaunchRequest, SandboxSpec
from aircell.status import ExitStatus


def run(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND")],
    image: Annotated[str, typer.Option(help="What to run it in.")],
    backend: options.Backend = "cri",
    network: Annotated[Literal["none", "host", "pod"], typer.Option(help="What it can reach.")] = "none",
    memory: Annotated[str | None, typer.Option(help="Limit, such as 512Mi.")] = None,
    cpus: Annotated[float | None, typer.Option(help="Limit, such as 0.5.")] = None,
    pids: Annotated[int | None, typer.Option(help="Limit of processes and threads.")] = None,
    user: Annotated[str | None, typer.Option(help="Name or number.")] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME[=VALUE]", help="Without a value: this shell's.")
    ] = None,
    mount: Annotated[list[str] | None, typer.Option(metavar="SOURCE:TARGET[:rw]", help="Read-only without rw.")] = None,
    python: Annotated[str | None, typer.Option(help="The interpreter in the image that runs the agent.")] = None,
    pull: Annotated[Literal["always", "missing", "never"], typer.Option(help="Whether to pull the image.")] = "missing",
    label: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Shown by `aircell ps`.")] = None,
    timing: Annotated[bool, typer.Option("--timing", help="Print how long each state took.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print each state, also without a terminal.")
    ] = False,
    socket: options.Socket = options.SOCKET,
    start: options.Autostart = None,
) -> None:
    """Run a command in a new sandbox with this terminal's input and output.

    Signals are passed on. The exit code is the command's own, or 128 and the number of the signal that ended it, or
    125 when Aircell could not run it.
    """
    limits = {"memory": memory, "cpus": cpus, "pids": pids}
    spec = {
        "image": image,
        "network": network,
        "resources": given(limits),
        "mounts": [parse_mount(text) for text in mount or ()],
        "pull_policy": pull,
        **given({"user": user, "python": python}),
    }
    job = {"kind": "exec", "argv": command, "env": dict(parse_env(text) for text in env or ())}
    labels = dict(parse_pair(text, "--label") for text in label or ())
    request = make_request(backend=backend, spec=spec, job=job, labels=labels)
    with (
        client(socket, start).launch(request.model_dump(mode="json")) as sandbox,
        Reporter(verbose=verbose) as reporter,
    ):
        exit = Attached(sandbox, reporter.show).run()
        if timing:
            reporter.print_timing()
    if exit.reason and (verbose or exit.oom_killed or exit.code is None):
        output.note(exit.reason)
    raise typer.Exit(exit_code(exit))


def make_request(*, spec: dict[str, Any], job: dict[str, Any], **fields: Any) -> LaunchRequest:
    """Raises InvalidSpec naming each option that is wrong."""
    try:
        return LaunchRequest(spec=SandboxSpec(**spec), job=Job(**job), **fields)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg'].removeprefix('Value error, ')}" for each in error.errors()
        )
        raise InvalidSpec(f"{problems}.", hint="See `aircell run --help` and `aircell schema`.") from error


def given(values: dict[str, Any]) -> dict[str, Any]:
    """Only what the user said, so that the spec's own defaults hold for the rest."""
    return {name: value for name, value in values.items() if value is not None}


def parse_mount(text: str) -> dict[str, Any]:
    """``source:target``, ``source:target:ro`` or ``source:target:rw``; a relative source is completed."""
    source, separator, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if not separator or not target or mode not in ("", "ro", "rw"):
        raise InvalidSpec(f"--mount {text}: this is not SOURCE:TARGET, SOURCE:TARGET:ro or SOURCE:TARGET:rw.")
    return {"source": os.path.abspath(source), "target": target, "read_only": mode != "rw"}  # noqa: PTH100


def parse_env(text: str) -> tuple[str, str]:
    """``NAME=VALUE``, or ``NAME`` for the value that it has here."""
    name, separator, value = text.partition("=")
    if separator:
        return name, value
    if name not in os.environ:
        raise InvalidSpec(f"--env {name}: there is no such variable here.", hint=f"Write --env {name}=VALUE.")
    return name, os.environ[name]


def parse_pair(text: str, option: str) -> tuple[str, str]:
    """``NAME=VALUE``."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise InvalidSpec(f"{option} {text}: this is not NAME=VALUE.")
    return name, value


def exit_code(exit: ExitStatus) -> int:
    """As a shell has it; 125 when nobody knows how the command ended."""
    if exit.code is not None:
        return exit.code
    return 128 + exit.signal if exit.signal is not None else output.EXIT_FAILURE
