"""``aircell image build``: an image from a Containerfile or from requirements, built and loaded into the engine."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from aircell import builders, requirements_recipe
from aircell.builders import Recipe
from aircell.cli import options, output
from aircell.errors import InvalidSpec
from aircell.reference import Reference
from aircell.requirements import problem, read

app = typer.Typer(help="Make images.", no_args_is_help=True)


@app.callback()
def _image() -> None:
    pass


@app.command()
def build(
    tag: Annotated[str, typer.Option("--tag", "-t", help="What the image is to be called.")],
    context: Annotated[Path, typer.Argument(help="The folder that a Containerfile copies from.")] = Path(),
    file: Annotated[Path | None, typer.Option("--file", "-f", help="CONTEXT/Containerfile, unless given.")] = None,
    build_arg: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, for a Containerfile's ARG.")] = None,
    requirements: Annotated[
        Path | None, typer.Option("--requirements", "-r", help="Install this file's requirements, and Airflow.")
    ] = None,
    python: Annotated[str | None, typer.Option(help="With -r: the Python of the image, such as 3.11.")] = None,
    base: Annotated[str | None, typer.Option(help="With -r: the image to begin with, instead.")] = None,
    airflow: Annotated[
        str | None, typer.Option(help="With -r: the version of Airflow, or `none`; that of this environment.")
    ] = None,
    builder: Annotated[str | None, typer.Option(help="buildah or docker; the first that is installed.")] = None,
    backend: options.Backend = "cri",
    socket: options.Socket = options.SOCKET,
    start: options.Autostart = None,
) -> None:
    """Build an image, and load it into the node's engine. Prints its id."""
    with_builder = builders.find(builder)
    with contextlib.ExitStack() as stack:
        if requirements is not None:
            recipe = stack.enter_context(_from_requirements(tag, requirements, python, base, airflow))
        else:
            recipe = _from_containerfile(tag, file or context / "Containerfile", context, build_arg or [])
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="aircell-image-"))
        archive = Path(folder, "image.tar")
        with_builder.build(recipe, output.progress)
        with_builder.save(recipe.reference, archive, output.progress)
        with archive.open("rb") as content:
            asked = options.client(socket, start).call(
                "load", [content.fileno()], backend=backend, image=recipe.reference
            )
            loaded = [answer["image"] for answer in asked if "image" in answer]
    typer.echo(loaded[-1]["id"])


def _from_containerfile(tag: str, file: Path, context: Path, arguments: list[str]) -> Recipe:
    if not file.is_file():
        raise InvalidSpec(f"there is no {file}.", hint="Name it with --file, or give requirements with -r.")
    for each in arguments:
        if "=" not in each:
            raise InvalidSpec(f"--build-arg {each} is not NAME=VALUE.")
    named = dict(each.split("=", 1) for each in arguments)
    return Recipe(str(Reference.parse(tag)), file, context, named)


@contextlib.contextmanager
def _from_requirements(
    tag: str, file: Path, python: str | None, base: str | None, airflow: str | None
) -> Iterator[Recipe]:
    if python is not None and base is not None:
        raise InvalidSpec("--python chooses the image to begin with, and --base names one.", hint="Give one of them.")
    try:
        lines = read(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"{file} cannot be read: {error}.", hint="Name a file of requirements with -r.") from error
    for number, line in lines:
        if wrong := problem(line):
            raise InvalidSpec(f"{file}:{number}: {wrong}.")
    wanted = (*requirements_recipe.airflow(airflow), *(line for _, line in lines))
    with requirements_recipe.recipe(tag, base or requirements_recipe.base_image(python), wanted, "python3") as recipe:
        yield recipe
