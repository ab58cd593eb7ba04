"""The contract on the engines that we know, and for both kinds of sandboxes."""

from __future__ import annotations

import pytest

from tests.contract.engines import ENGINES
from tests.contract.fixtures import backend, harness, on
from tests.contract.forks import FORKS

__all__ = ["backend", "engine", "harness"]

engine = on(*ENGINES, FORKS)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Forks are another kind of sandbox and not another engine: what concerns no sandbox is not tested again."""
    others = [item for item in items if isinstance(item, pytest.Function) and not _concerns(item)]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def _concerns(item: pytest.Function) -> bool:
    """Whether a test can be asked of the kind of sandboxes that it is about to be asked of."""
    if not hasattr(item, "callspec") or item.callspec.params.get("engine") is not FORKS:
        return True
    makes_sandboxes = "harness" in item.fixturenames or item.get_closest_marker("field") is not None
    return makes_sandboxes and item.get_closest_marker("first_kind") is None
