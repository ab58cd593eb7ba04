"""Which modules of the image the loading of DAG code spends its time on; in a job's process, for ``preload: auto``.

One file, standard library only, beside ``agent.py``, which loads it only when it is asked for.
"""

import importlib.machinery
import mmap
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

THRESHOLD = 0.05
"""Seconds of CPU time from which an import is worth doing beforehand."""
PAGE = 4096
"""Bytes for all names."""


class ImportClock:
    """Made before the fork. The job's process notes names in a page that it shares with the agent, and nothing else."""

    def __init__(self) -> None:
        self.page = mmap.mmap(-1, PAGE)

    def start(self, is_dag_code: "Callable[[str | None], bool]") -> None:
        """In the job's process, from here on."""
        sys.meta_path.insert(0, Finder(self, is_dag_code))

    def note(self, name: str, seconds: float) -> None:
        if seconds >= THRESHOLD:
            try:
                self.page.write(name.encode() + b"\n")
            except ValueError:  # the page is full
                return

    def names(self) -> "list[str]":
        """What the job's process has noted. User code runs there: it may be anything."""
        return self.page[:].partition(b"\0")[0].decode(errors="replace").split("\n")[:-1]


class Finder:
    """Comes first in ``sys.meta_path``. Finds what the other finders find, and only for imports of interest: those of
    modules of the image that the top level of a DAG's file or module makes, by itself or through a function."""

    def __init__(self, clock: ImportClock, is_dag_code: "Callable[[str | None], bool]") -> None:
        self.clock = clock
        self.is_dag_code = is_dag_code

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if not self.is_for_dag_code(sys._getframe(1)):
            return None
        began = time.thread_time()
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target) if finder is not self and hasattr(finder, "find_spec") else None
            if spec is not None:
                break
        if type(spec) is importlib.machinery.ModuleSpec and spec.has_location and not self.is_dag_code(spec.origin):
            spec.__dict__["_clock"] = (self.clock, began)
            spec.__class__ = TimedSpec
        return spec

    def is_for_dag_code(self, frame: "FrameType | None") -> bool:
        """Whether the file or module that is being loaded is DAG code."""
        while frame is not None and frame.f_code.co_name != "<module>":
            frame = frame.f_back
        return frame is not None and self.is_dag_code(frame.f_code.co_filename)


class TimedSpec(importlib.machinery.ModuleSpec):
    """That of a module which is being imported: the import system sets ``_initializing`` when it begins and ends.

    A loader of our own would leave its frame in the traceback of a module that fails, and so in Airflow's import error.
    """

    @property
    def _initializing(self) -> bool:
        return bool(self.__dict__.get("_initializing"))

    @_initializing.setter
    def _initializing(self, value: bool) -> None:
        self.__dict__["_initializing"] = value
        if not value:
            clock, began = self.__dict__.pop("_clock")
            self.__class__ = importlib.machinery.ModuleSpec  # type: ignore[assignment]
            if self.name in sys.modules:
                clock.note(self.name, time.thread_time() - began)
