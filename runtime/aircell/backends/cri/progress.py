"""How far a pull is. The CRI does not tell; containerd's content store does, for all pulls of the node together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from aircell.backends.base import PullProgress
from aircell.backends.cri.client import CriClient
from aircell.backends.cri.config import CriConfig
from aircell.backends.pull_failures import STALLED
from aircell.errors import AircellError
from aircell_cri.containerd import content_pb2

logger = logging.getLogger(__name__)

_PERIOD = 0.5
_NAMESPACE = (("containerd-namespace", "k8s.io"),)


@dataclass
class Meter:
    """Adds up downloads, which are listed only while they last.

    What an earlier pull left half done is listed, too, for as long as containerd keeps it, and does not count.
    """

    _seen: dict[str, int] = field(default_factory=dict)
    _left: dict[str, int] | None = None
    """Where each download stood that was there before."""
    busy: bool = True
    """Something is to be downloaded, or nothing was yet; else containerd is unpacking."""

    def read(self, statuses: Iterable[content_pb2.Status]) -> PullProgress:
        """Progress so far. A download that is no longer listed is complete; the total grows as downloads begin."""
        listed = {status.ref: status for status in statuses}
        if self._left is None:
            self._left = {ref: status.offset for ref, status in listed.items()}
        active = {ref: status for ref, status in listed.items() if self._left.get(ref) != status.offset}
        self._seen |= {ref: status.total for ref, status in active.items()}
        self.busy = bool(active) or not self._seen
        done = sum(active[ref].offset if ref in active else total for ref, total in self._seen.items())
        return PullProgress(done=done, total=sum(self._seen.values()))


async def watched(
    pull: Coroutine[Any, Any, None],
    client: CriClient,
    config: CriConfig,
    reference: str,
    progress: Callable[[PullProgress], None],
) -> None:
    """Runs a pull to its end. Calls ``progress`` twice a second; never where the engine is not containerd.

    Raises what the pull raises, and ImagePullFailed when nothing comes for as long as the configuration bears it.
    """
    pulling = asyncio.ensure_future(pull)
    meter, last, moved = Meter(), PullProgress(), time.monotonic()
    try:
        while not (await asyncio.wait({pulling}, timeout=_PERIOD))[0]:
            try:
                now = meter.read(await _downloads(client, config.call_timeout))
            except AircellError as error:
                logger.debug("no progress of pulls from this engine: %s", error)
                break
            if now != last or not meter.busy:
                last, moved = now, time.monotonic()
            elif time.monotonic() - moved > config.pull_stall_timeout:
                raise STALLED.error(reference, f"nothing came for {config.pull_stall_timeout:g} s")
            progress(now)
        await pulling
    finally:
        pulling.cancel()
        await asyncio.wait([pulling])


async def _downloads(client: CriClient, seconds: float) -> Iterable[content_pb2.Status]:
    request = content_pb2.ListStatusesRequest()
    answer = await client.call(
        client.content.ListStatuses, request, seconds=seconds, doing="asking for downloads", metadata=_NAMESPACE
    )
    return answer.statuses
