"""What is aimed at, and whether it was reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.results import Results


@dataclass(frozen=True)
class Target:
    """A bound on one figure of one series: a percentile of a kind or, with ``against``, a ratio of two medians."""

    benchmark: str
    series: str
    kind: str
    bound: float
    percent: int = 50
    against: str = ""
    at_least: bool = False

    @property
    def says(self) -> str:
        """Such as ``hand-over: request to first line, one-use, p99 <= 40``."""
        figure = f"/ {self.against}" if self.against else f"p{self.percent}"
        sign = ">=" if self.at_least else "<="
        return f"{self.benchmark}: {self.series}, {self.kind} {figure} {sign} {self.bound:g}"

    def figure(self, results: Results) -> float | None:
        """What was measured, or None."""
        series = results.series(self.benchmark, self.series)
        if series is None:
            return None
        if self.against:
            return series.ratio(self.kind, self.against)
        return series.percentile(self.kind, self.percent)

    def met(self, results: Results) -> bool:
        """What was not measured was not met."""
        figure = self.figure(results)
        if figure is None:
            return False
        return figure >= self.bound if self.at_least else figure <= self.bound


WARM = ("one-use", "zygote")

TARGETS: Sequence[Target] = (
    Target("handover", "request to first line", "one-use", 8),
    Target("handover", "request to first line", "zygote", 12),
    *(Target("handover", "request to first line", kind, 40, percent=99) for kind in WARM),
    *(Target("tasks", "start to end", kind, 0.85, against="stock") for kind in WARM),
    *(Target("tasks", "queued to end", kind, 0.82, against="stock") for kind in WARM),
    *(Target("heavy", "start to end", kind, 0.25, against="stock") for kind in WARM),
    Target("parsing", "one of 100 small files", "resident", 0.7, against="stock"),
    Target("parsing", "one of 20 heavy files", "resident", 0.12, against="stock"),
    Target("cold", "request to first line", "cold", 1.15, against="raw CRI"),
    Target("sustained", "tasks per second", "zygote", 0.5, against="stock", at_least=True),
    Target("sustained", "tasks per second", "zygote", 6, against="one-use", at_least=True),
    Target("daemon", "resident memory", "200 live", 80),
    Target("daemon", "CPU when idle", "200 live", 2),
    Target("daemon", "hand-over", "200 live", 1.2, against="1 live"),
    Target("daemon", "hand-over by known images", "300 more", 1.2, against="as they are"),
    Target("growth", "resident memory", "10/10", 1.1, against="1/10"),
    Target("growth", "descriptors", "10/10", 1.1, against="1/10"),  # of twenty, up to four are ready sandboxes
)
