"""The ways in which a sandbox can be had. Another one joins by one more line of the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Kind:
    """How aircelld is configured for it, and how it is told afterwards that a sandbox was of this kind."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """Of aircelld, on top of what a test's node has."""
    mark: Mapping[str, Any] = field(default_factory=dict)
    """What ``ps`` and ``inspect`` say of such a sandbox."""
    warm: bool = False
    """Ready before it is asked for: a measurement waits until one is."""
    only: str = ""
    """The one benchmark that knows it."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Of airflow.cfg, in ``[sandbox_runtime]``."""


KINDS: Mapping[str, Kind] = {
    "cold": Kind({"warm": {"enabled": False}}, mark={"kind": "cold"}),
    "one-use": Kind({"zygotes": {"enabled": False}}, mark={"kind": "warm"}, warm=True),
    "zygote": Kind(mark={"kind": "zygote"}, warm=True),
    "resident": Kind(mark={"kind": "resident"}, warm=True, only="parsing", options={"parse_isolation": "image"}),
}
"""The last that every benchmark knows is what aircelld does by itself on an engine that can."""
