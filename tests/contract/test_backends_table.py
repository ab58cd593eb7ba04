"""The table of docs/backends.md is complete; that each of its cells is true, the tests of the fields see to."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from aircell.spec import SandboxSpec
from tests.contract import equivalence
from tests.contract.engines import ENGINES
from tests.contract.forks import FORKS

OF_AIRCELLD = {"image", "parse_isolation", "pull_policy", "python", "preload", "requirements", "startup_timeout"}
"""What aircelld itself sees to, on any backend."""
OF_THE_KERNEL = {"security.apparmor"}
"""Enforced where the node's kernel has it; a table for all nodes cannot say."""


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every field by its dotted name; ``dns`` counts as one."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if name in ("resources", "security") and isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from leaves(inner, f"{name}.")
        else:
            yield prefix + name


def test_every_field_has_a_row() -> None:
    rows = {row.split(":")[0].split(",")[0] for row in equivalence.read()}
    assert rows == set(leaves(SandboxSpec)) - OF_AIRCELLD - OF_THE_KERNEL


def test_every_engine_has_a_column() -> None:
    for row in equivalence.read().values():
        assert list(row) == [engine.name for engine in (*ENGINES, FORKS)]
