"""The command ``aircell``: what runs on this node, and running something there by hand."""

from __future__ import annotations

import sys

from aircell.cli import output
from aircell.cli.app import build
from aircell.errors import AircellError


def main() -> None:
    """Entry point of the console script."""
    try:
        build()(prog_name="aircell")
    except AircellError as error:
        output.print_error(error)
        sys.exit(output.EXIT_FAILURE)
