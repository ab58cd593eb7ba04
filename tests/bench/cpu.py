"""What the whole machine spends."""

from __future__ import annotations

import psutil


def busy() -> float:
    """CPU seconds of all processors since the start."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)
