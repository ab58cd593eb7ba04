"""What ``preload: auto`` has learned: modules that DAG files were slow to import, for the sandboxes made from then on.

Jobs name them, so a name is believed only for sandboxes of the same image, user, environment and tenant, which is
what ``Shape.kin`` says. None of it outlives aircelld.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aircell.daemon.gate import Report
from aircell.daemon.shape import Shape
from aircell.errors import StartupFailed

log = logging.getLogger(__name__)

MAX_MODULES = 64
"""Of one kin, those included that are left out."""
_MAX_KINS = 256
"""After so many, what was learned first is forgotten."""


@dataclass
class _Lesson:
    modules: list[str] = field(default_factory=list)
    tried: set[str] = field(default_factory=set)
    """Those that have been imported in a sandbox that came up."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Why, by name."""

    def learn(self, modules: Iterable[str]) -> None:
        for module in modules:
            full = len(self.modules) + len(self.left_out) >= MAX_MODULES
            if not full and module not in self.modules and module not in self.left_out:
                self.modules.append(module)

    def leave_out(self, module: str, why: str) -> None:
        if module in self.modules:
            self.modules.remove(module)
            self.left_out[module] = why
            log.info("module %s is not preloaded any more: %s", module, why)


class LearnedPreloads:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._lessons: dict[str, _Lesson] = {}

    def learn(self, shape: Shape, modules: Sequence[str]) -> None:
        """A job of that shape was slow to import these modules."""
        if not modules or not shape.learns:
            return
        lesson = self._lessons.setdefault(shape.kin, _Lesson())
        lesson.learn(modules)
        if len(self._lessons) > _MAX_KINS:
            del self._lessons[next(iter(self._lessons))]

    def taught(self, shape: Shape) -> Shape:
        """The same with what a sandbox of that shape is to preload by now."""
        return dataclasses.replace(shape, learned=tuple(self._lesson(shape).modules))

    def suffices(self, learned: Iterable[str], shape: Shape) -> bool:
        """Whether a sandbox that was made with these is as one of that shape would be made now."""
        return set(self._lesson(shape).modules) <= set(learned)

    def judge(self, shape: Shape, report: Report) -> None:
        """Leaves out what a new sandbox of that shape, which was taught, could not import.

        Raises StartupFailed when one of the modules has left it in a state that no job is to have.
        """
        lesson = self._lesson(shape)
        for module in shape.learned:
            if why := report.preload_errors.get(module):
                lesson.leave_out(module, why)
            else:
                lesson.tried.add(module)
        if report.spoiled:
            raise StartupFailed("a module that was preloaded started threads.")

    def blame(self, shape: Shape, error: Exception) -> bool:
        """Whether the sandbox, which failed, would be made otherwise now: without what had never been tried before."""
        lesson = self._lesson(shape)
        if isinstance(error, StartupFailed):
            for module in set(shape.learned) - lesson.tried:
                lesson.leave_out(module, f"a sandbox that was to import it failed: {error.message}")
        return not set(shape.learned) <= set(lesson.modules)

    def left_out(self, shape: Shape) -> Mapping[str, str]:
        """Why a module that was learned is not preloaded, by its name."""
        return self._lesson(shape).left_out

    def summary(self, shape: Shape) -> dict[str, Any]:
        """For ``pool ls``."""
        lesson = self._lesson(shape)
        return {"learned": list(lesson.modules), "left_out": dict(lesson.left_out)}

    def forget(self) -> None:
        """Everything."""
        self._lessons.clear()

    def _lesson(self, shape: Shape) -> _Lesson:
        return self._lessons.get(shape.kin, _Lesson()) if shape.learns else _Lesson()
