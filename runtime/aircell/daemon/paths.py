"""From paths in a worker's view to paths of this node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from aircell.errors import InvalidSpec
from aircell.spec import Mount


def map_path(path: str, path_map: Mapping[str, str]) -> str:
    """``path`` with the longest matching prefix of ``path_map`` replaced."""
    pure = PurePosixPath(path)
    for prefix in sorted(path_map, key=len, reverse=True):
        if pure.is_relative_to(prefix):
            return str(PurePosixPath(path_map[prefix]) / pure.relative_to(prefix))
    return path


def on_node(mounts: Iterable[Mount], path_map: Mapping[str, str]) -> tuple[Mount, ...]:
    """The mounts with sources as they really are on this node: mapped, every symbolic link resolved.

    Raises InvalidSpec for a source that does not exist: engines would make an empty folder in its place.
    """
    return tuple(mount.model_copy(update={"source": _resolve(mount.source, path_map)}) for mount in mounts)


def _resolve(source: str, path_map: Mapping[str, str]) -> str:
    mapped = map_path(source, path_map)
    try:
        return str(Path(mapped).resolve(strict=True))
    except (OSError, RuntimeError) as error:
        known_as = f" (it is {mapped} here)" if mapped != source else ""
        raise InvalidSpec(
            f"the mount source {source} does not exist on this node{known_as}.",
            hint="If workers see this folder elsewhere than the node does, say so in `path_map` of aircelld's "
            "configuration.",
        ) from error
