"""What is removed while nobody waits for it, from places that refuse."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from aircell.daemon import removals
from aircell.daemon.place import Place
from aircell.daemon.record import Record
from aircell.daemon.removals import Removals
from aircell.errors import AircellError, EngineError, EngineUnavailable
from aircell.status import ExitStatus


@dataclass
class Refusing(Place):
    """Raises these, one at each removal, and after that is removed."""

    errors: list[AircellError]
    tries: int = field(default=0)

    async def wait(self) -> ExitStatus:
        raise NotImplementedError

    async def stop(self, grace: float) -> None:
        raise NotImplementedError

    async def remove(self) -> None:
        self.tries += 1
        if self.errors:
            raise self.errors.pop(0)

    async def log_tail(self) -> str:
        raise NotImplementedError

    def save(self, record: Record) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("errors", "tries", "left"),
    [
        ([EngineError("failed to kill container: ttrpc: closed")], 2, False),
        ([EngineUnavailable("gone")], 1, True),
        ([EngineError("busy")] * 10, 3, True),
    ],
)
async def test_an_engine_that_refuses_is_asked_again_but_not_one_that_is_gone(
    errors: list[AircellError],
    tries: int,
    left: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(removals, "_PAUSE", 0.01)
    place, all_removals = Refusing(list(errors)), Removals()
    all_removals.begin("warm-1", place)
    assert "warm-1" in all_removals
    await all_removals.finish()
    assert (place.tries, "warm-1 is left to the reaper" in caplog.text) == (tries, left)
