"""How far a pull is, from the messages that Docker sends about each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aircell.backends.base import PullProgress


@dataclass
class Meter:
    """Adds up layers; what it says never goes back, though the total grows as layers begin."""

    _layers: dict[str, tuple[int, int]] = field(default_factory=dict)

    def read(self, message: Mapping[str, Any]) -> PullProgress | None:
        """Progress so far; None when the message is not about a download."""
        layer, status = message.get("id", ""), message.get("status")
        if status == "Downloading" and (detail := message.get("progressDetail")):
            self._layers[layer] = detail["current"], max(detail.get("total", 0), 0)
        elif status == "Download complete" and layer in self._layers:
            total = self._layers[layer][1]
            self._layers[layer] = total, total
        else:
            return None
        return PullProgress(
            done=sum(done for done, _ in self._layers.values()), total=sum(total for _, total in self._layers.values())
        )
