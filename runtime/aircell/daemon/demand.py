"""How many sandboxes of a shape should be ready, from when they were wanted."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from aircell.daemon.config import WarmSettings

_SHORTEST = 1.0
_HEAD_START = 0.2
"""Seconds for which a single job has the node's CPU to itself before the next sandbox is made behind it."""


@dataclass
class Demand:
    """Times are in seconds on one clock that never goes back."""

    settings: WarmSettings
    last: float
    """When a sandbox was last wanted."""
    _recent: deque[float] = field(default_factory=deque)
    _peak: int = 1
    _peak_at: float = float("-inf")

    def note(self, now: float, refill_seconds: float) -> None:
        """A sandbox is wanted now. Those that are wanted while one is being made must have been made before."""
        self.last = now
        self._recent.append(now)
        while self._recent[0] < now - max(refill_seconds, _SHORTEST):
            self._recent.popleft()
        if len(self._recent) >= self._peak or self._peak_is_old(now):
            self._peak, self._peak_at = len(self._recent), now

    def target(self, now: float) -> int:
        """The most that were wanted at a time lately, between the pool's minimum and maximum; 0 when it may end."""
        if self.over(now):
            return 0
        peak = 1 if self._peak_is_old(now) else self._peak
        return min(max(peak, self.settings.min), self.settings.max)

    def head_start(self, now: float) -> float:
        """Seconds until the next one may be made; none when several are wanted in the time that this takes."""
        return 0.0 if self.target(now) > 1 else max(0.0, self.last + _HEAD_START - now)

    def over(self, now: float) -> bool:
        """Nobody has wanted one for ``idle_ttl``."""
        return now - self.last > self.settings.idle_ttl

    def _peak_is_old(self, now: float) -> bool:
        return now - self._peak_at > self.settings.idle_ttl
