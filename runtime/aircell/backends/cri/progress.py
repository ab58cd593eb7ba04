"""How far a pull is. The CRI does not tell; containerd's content store does, for all pulls of the node together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field

from aircell.backends.base import PullProgress
from aircell.backends.cri.client import CriClient
from aircell.errors import AircellError
from aircell_cri.containerd import content_pb2

logger = logging.getLogger(__name__)

_PERIOD = 0.5
_NAMESPACE = (("containerd-namespace", "k8s.io"),)


@dataclass
class Meter:
    """Adds up downloads, which are listed only while they last."""

    _seen: dict[str, int] = field(default_factory=dict)

    def read(self, statuses: Iterable[content_pb2.Status]) -> PullProgress:
        """Progress so far. A download that is no longer listed is complete; the total grows as downloads begin."""
        active = {status.ref: status for status in statuses}
        self._seen |= {ref: status.total for ref, status in active.items()}
        done = sum(active[ref].offset if ref in active else total for ref, total in self._seen.items())
        return PullProgress(done=done, total=sum(self._seen.values()))


@contextlib.asynccontextmanager
async def reported(client: CriClient, seconds: float, progress: Callable[[PullProgress], None]) -> AsyncIterator[None]:
    """Calls ``progress`` twice a second while the context lasts; never where the engine is not containerd."""
    task = asyncio.create_task(_report(client, seconds, progress))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _report(client: CriClient, seconds: float, progress: Callable[[PullProgress], None]) -> None:
    meter = Meter()
    while True:
        await asyncio.sleep(_PERIOD)
        try:
            answer = await client.call(
                client.content.ListStatuses,
                content_pb2.ListStatusesRequest(),
                seconds=seconds,
                doing="asking for downloads",
                metadata=_NAMESPACE,
            )
        except AircellError as error:
            logger.debug("no progress of pulls from this engine: %s", error)
            return
        progress(meter.read(answer.statuses))
