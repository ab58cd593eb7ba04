"""What was measured, as ``bench/results.json`` keeps it: every sample, on what machine, and what follows from it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, computed_field

PERCENTILES = (50, 95, 99)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class Series(_Model):
    """One thing, measured on several kinds (stock, cold, one-use, ...) in turn, in one session on one machine."""

    unit: str
    """Of every sample: ms, MiB, tasks/s, ..."""
    samples: Mapping[str, list[float]]
    """By kind, in the order in which they were taken."""
    base: str | None = None
    """The kind that the others are compared with."""

    @computed_field  # type: ignore[prop-decorator]  # pydantic documents it so
    @property
    def medians(self) -> dict[str, float]:
        """By kind."""
        return {kind: statistics.median(samples) for kind, samples in self.samples.items() if samples}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ratios(self) -> dict[str, float]:
        """Median by median of the base, for every kind but the base."""
        medians = self.medians
        base = medians.get(self.base) if self.base else None
        return {kind: median / base for kind, median in medians.items() if base and kind != self.base}

    def percentile(self, kind: str, percent: int) -> float | None:
        """Linear between samples, so that p50 is the median; None when the kind was not measured."""
        samples = sorted(self.samples.get(kind, ()))
        if len(samples) < 2:
            return samples[0] if samples else None
        return statistics.quantiles(samples, n=100, method="inclusive")[percent - 1]

    def ratio(self, kind: str, base: str) -> float | None:
        """Of two medians; None when either is missing."""
        medians = self.medians
        return medians[kind] / medians[base] if kind in medians and medians.get(base) else None


class Section(_Model):
    """One benchmark's outcome, with the circumstances of its session."""

    commit: str
    """Of this repository; ends in ``+`` when files were changed."""
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    effort: str
    """How many samples: quick or full."""
    began: str
    """ISO 8601, UTC."""
    seconds: float
    load: list[float]
    """Load average of the last minute when it began and when it ended."""
    error: str = ""
    """Why it ended early; the series that there are were complete by then."""
    series: Mapping[str, Series] = Field(default_factory=dict)


class Results(_Model):
    """One section for each benchmark: the last time that it was run."""

    benchmarks: Mapping[str, Section] = Field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Results:
        """What the file holds; empty when there is none. Raises ValidationError when it holds something else."""
        return cls.model_validate_json(path.read_bytes()) if path.exists() else cls()

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        path.parent.mkdir(exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(self.model_dump_json(indent=1) + "\n")
        new.replace(path)

    def having(self, benchmark: str, section: Section) -> Results:
        """The same with that section in place of the one it had."""
        return Results(benchmarks={**self.benchmarks, benchmark: section})

    def series(self, benchmark: str, name: str) -> Series | None:
        """None when it was not measured."""
        section = self.benchmarks.get(benchmark)
        return section.series.get(name) if section else None
