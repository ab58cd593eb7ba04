"""The contract on the engines that we know."""

from __future__ import annotations

from tests.contract.engines import ENGINES
from tests.contract.fixtures import backend, harness, on

__all__ = ["backend", "engine", "harness"]

engine = on(*ENGINES)
