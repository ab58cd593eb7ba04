"""Which images have been unused for long, and what is remembered of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from aircell.daemon.config import ImageGcSettings
from aircell.daemon.image_gc import unused
from aircell.daemon.image_ledger import Entry, ImageLedger
from aircell.status import ImageInfo


def entry(id: str, last_used: float) -> Entry:
    return Entry(backend="cri", id=id, names=frozenset({f"{id}:1"}), last_used=last_used)


OLD, OLDER, NEW = entry("old", 50), entry("older", 10), entry("new", 95)


@pytest.mark.parametrize(("keep", "expected"), [(0, [OLDER, OLD]), (1, [OLDER, OLD]), (2, [OLDER]), (3, []), (4, [])])
def test_the_images_used_last_are_kept_longer(keep: int, expected: list[Entry]) -> None:
    assert unused([OLDER, OLD, NEW], seconds=20, keep=keep, now=100) == expected


def test_by_default_nothing_goes_by_itself() -> None:
    settings = ImageGcSettings()
    assert (settings.unused_seconds, settings.disk_percent) == (None, None)


def info(*tags: str) -> ImageInfo:
    return ImageInfo(id="sha256:1", reference=tags[0], tags=tags)


def test_only_what_was_not_there_before_is_ours(tmp_path: Path) -> None:
    ledger = ImageLedger(tmp_path / "images.json")
    ledger.made("docker", info("theirs:1"), info("theirs:1", "asked:1"))
    assert ledger.of("docker") == []
    ledger.made("docker", None, info("asked:1"))
    ledger.made("docker", info("asked:1", "theirs:1"), info("asked:1", "theirs:1", "also:1"))
    [ours] = ImageLedger(tmp_path / "images.json").of("docker")
    assert ours.names == {"asked:1", "also:1"}
    assert ledger.of("cri") == []


def test_a_record_that_cannot_be_read_makes_nothing_ours(tmp_path: Path) -> None:
    (tmp_path / "images.json").write_text("[{")
    assert ImageLedger(tmp_path / "images.json").of("cri") == []
