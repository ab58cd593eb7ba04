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


KINDS: Mapping[str, Kind] = {
    "cold": Kind({"warm": {"enabled": False}}, mark={"kind": "cold"}),
    "one-use": Kind({"warm": {"enabled": True}}, mark={"kind": "warm"}, warm=True),
}
"""The last has the fastest hand-over."""
