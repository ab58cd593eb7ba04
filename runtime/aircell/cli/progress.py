"""What a user sees of a launch: the states, while they last, and how long each took."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from itertools import pairwise
from types import TracebackType
from typing import Any

from rich.status import Status

from aircell.cli import output
from aircell.status import State

_BEFORE_THE_JOB = {State.QUEUED, State.PULLING, State.BUILDING, State.CREATING, State.STARTING}


class Reporter:
    """Lines on standard error when ``verbose``; else, on a terminal, one line that goes when the command runs."""

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose
        self._status: Status | None = None
        if not verbose and sys.stderr.isatty():
            self._status = output.console(stderr=True).status("aircell: connecting")
        self._entered: dict[str, float] = {}

    def __enter__(self) -> Reporter:
        if self._status:
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._status:
            self._status.stop()

    def show(self, event: Mapping[str, Any]) -> None:
        """Takes note of a launch event."""
        state = event["event"]
        new = state not in self._entered
        self._entered.setdefault(state, event["at"])
        if self._status and state in _BEFORE_THE_JOB:
            self._status.update(f"aircell: {describe(event)}")
        elif self._status:
            self._status.stop()
        if self._verbose and new:
            output.note(describe(event))

    def print_timing(self) -> None:
        """How long each state lasted, the last until now."""
        output.note(f"timing: {timing(self._entered, time.time())}")


def describe(event: Mapping[str, Any]) -> str:
    """A launch event in a few words."""
    words = [event["event"]]
    if event.get("image"):
        words.append(event["image"])
    if event.get("total"):
        words.append(f"({output.size(event['done'])} of {output.size(event['total'])})")
    if event.get("line"):
        words.append(event["line"])
    return " ".join(words)


def timing(entered: Mapping[str, float], end: float) -> str:
    """From when each state was entered (seconds), how long it lasted."""
    starts = {state: at for state, at in entered.items() if state not in (State.EXITED, State.FAILED)}
    if not starts:
        return "unknown"
    spans = pairwise([*starts.values(), end])
    parts = [f"{state} {(until - since) * 1000:.0f} ms" for state, (since, until) in zip(starts, spans, strict=True)]
    return ", ".join([*parts, f"total {(end - min(starts.values())) * 1000:.0f} ms"])
