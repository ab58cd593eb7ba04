"""aircelld's own log: on standard error, as text for people or as one JSON object a line for collectors."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone

from aircell.daemon.config import LogSettings


class JsonFormatter(logging.Formatter):
    """One JSON object: time, level, logger, message and, for an exception, its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure(settings: LogSettings) -> None:
    """Sends everything of ours at or above the level to standard error, and the warnings of libraries."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("aircell").setLevel(settings.level.upper())
