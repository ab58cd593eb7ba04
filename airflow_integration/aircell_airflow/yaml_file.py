"""YAML that DAG authors wrote, read with bounds and with the line of every value. No Airflow.

Anything odd is an InvalidSpec that names file, line and key: too large, not UTF-8, no regular file, aliases (which
make "YAML bombs"), duplicate keys, tags that construct objects.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from aircell.errors import InvalidSpec

MAX_BYTES = 64 * 1024
KeyPath: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class Located:
    """A value and the lines on which its parts were written."""

    file: Path
    value: Any
    lines: Mapping[KeyPath, int]

    def where(self, path: KeyPath = ()) -> str:
        """``file:line`` of the value at a path below this one."""
        return f"{self.file}:{self.lines[path]}"


def read(path: Path, root: Path | None = None) -> bytes | None:
    """The content of a regular file, None when there is none; of a large file no more than MAX_BYTES + 1 bytes.

    Raises InvalidSpec when it is unreadable, no regular file, or really lies outside ``root``.
    """
    try:
        # Non-blocking, so that a FIFO of that name cannot hold up the DAG processor.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            raise InvalidSpec(f"{path}: is a symbolic link to nothing") from error
        return None
    except OSError as error:
        raise InvalidSpec(f"{path}: cannot be read: {error.strerror}") from error
    try:
        real = Path(f"/proc/self/fd/{descriptor}").readlink()  # what was opened, not what the name means by now
        if root is not None and not real.is_relative_to(root.resolve()):
            raise InvalidSpec(f"{path}: is a symbolic link out of the bundle {root}")
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidSpec(f"{path}: is not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            return stream.read(MAX_BYTES + 1)
    finally:
        os.close(descriptor)


def compose(path: Path, content: bytes) -> yaml.Node | None:
    """The one document of a file as nodes, or None for an empty file."""
    if len(content) > MAX_BYTES:
        raise InvalidSpec(f"{path}: is over the limit of {MAX_BYTES} bytes")
    try:
        node: yaml.Node | None = yaml.compose(content.decode("utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InvalidSpec(f"{path}:{line}: is not UTF-8") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InvalidSpec(f"{path}:{line}: is not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise InvalidSpec(f"{path}: is not YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise InvalidSpec(f"{path}: is nested too deeply") from error
    return node


def locate(file: Path, node: yaml.Node, name: str, *, strings: frozenset[str] = frozenset()) -> Located:
    """The plain value of a node. ``name`` is its key, for messages.

    In a mapping whose key is one of ``strings`` numbers stay as they are written.
    """
    lines: dict[KeyPath, int] = {}
    try:
        value = _Converter(file, name, strings, lines).convert(node, (), text=False)
    except RecursionError as error:
        raise InvalidSpec(f"{file}:{_line(node)}: {name}: is nested too deeply") from error
    return Located(file, value, lines)


class _Converter:
    def __init__(self, file: Path, name: str, strings: frozenset[str], lines: dict[KeyPath, int]) -> None:
        self._file = file
        self._name = name
        self._strings = strings
        self._lines = lines
        self._seen: set[int] = set()
        self._scalars = yaml.SafeLoader("")

    def convert(self, node: yaml.Node, path: KeyPath, *, text: bool) -> Any:
        if id(node) in self._seen:
            # The node is where the anchor is; the alias is on the line of the nearest key.
            line = next(self._lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in self._lines)
            raise self._error(line, path, "aliases (*name) are not allowed here; write the value out")
        self._seen.add(id(node))
        self._lines.setdefault(path, _line(node))
        if isinstance(node, yaml.MappingNode):
            return dict(self._pairs(node, path))
        if isinstance(node, yaml.SequenceNode):
            return [self.convert(item, (*path, str(index)), text=False) for index, item in enumerate(node.value)]
        if text and node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
            return node.value
        try:
            return self._scalars.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else error
            raise self._error(_line(node), path, f"cannot be read: {problem}") from error

    def _pairs(self, node: yaml.MappingNode, path: KeyPath) -> Iterator[tuple[str, Any]]:
        keys: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(_line(key), path, "a key must be a plain word")
            if key.value in keys:
                raise self._error(_line(key), (*path, key.value), "is set twice")
            keys.add(key.value)
            self._lines[(*path, key.value)] = _line(key)
            yield key.value, self.convert(value, (*path, key.value), text=path[-1:] != () and path[-1] in self._strings)

    def _error(self, line: int, path: KeyPath, problem: str) -> InvalidSpec:
        return InvalidSpec(f"{self._file}:{line}: {'.'.join((self._name, *path))}: {problem}")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
