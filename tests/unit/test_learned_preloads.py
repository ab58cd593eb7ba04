"""What ``preload: auto`` learns, from whom, for whom, and what it leaves out."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from aircell.daemon.gate import ListeningGate, Report
from aircell.daemon.learned_preloads import MAX_MODULES, LearnedPreloads
from aircell.daemon.shape import Shape
from aircell.errors import EngineError, StartupFailed
from aircell.spec import SandboxSpec
from aircell.status import ExitStatus
from tests.unit.test_shape import shape

AUTO = shape(preload="auto")


def taught(*modules: str) -> tuple[LearnedPreloads, Shape]:
    learned = LearnedPreloads()
    learned.learn(AUTO, modules)
    return learned, learned.taught(AUTO)


def test_auto_stands_alone_or_in_a_list() -> None:
    assert SandboxSpec(image="i", preload="auto") == SandboxSpec(image="i", preload=("auto",))  # type: ignore[arg-type]
    assert shape(preload=["auto", "json"]).learns
    assert not shape(preload=["json"]).learns
    with pytest.raises(ValueError, match="preload"):
        SandboxSpec(image="i", preload="pandas")  # type: ignore[arg-type]


def test_what_is_learned_is_no_part_of_the_shape_and_a_sandbox_without_it_does_not_suffice() -> None:
    learned, wiser = taught("pandas", "numpy", "pandas")
    assert wiser == AUTO
    assert wiser.learned == ("pandas", "numpy")
    assert not learned.suffices((), AUTO)
    assert learned.suffices(("numpy", "pandas", "more"), AUTO)


@pytest.mark.parametrize(
    ("other", "shared"),
    [
        (shape(preload=["auto", "airflow.dag_processing.processor"]), True),  # parsing, for tasks
        (shape(preload="auto", resources={"memory": 2**30}), True),
        (shape(preload=["json"]), False),
        (shape(preload="auto", uid=50001), False),
        (shape(preload="auto", registry_credentials="team"), False),
        (shape(preload="auto", env={"A": "1"}), False),
        (shape(preload="auto", user="1000"), False),
    ],
)
def test_who_learns_from_whom(other: Shape, shared: bool) -> None:
    learned, _ = taught("pandas")
    assert learned.taught(other).learned == (("pandas",) if shared else ())


def test_nothing_is_learned_for_those_who_have_not_asked() -> None:
    learned = LearnedPreloads()
    learned.learn(shape(), ["pandas"])
    learned.learn(AUTO, [])
    assert learned.summary(AUTO) == {"learned": [], "left_out": {}}
    assert learned.taught(shape()).learned == ()


def test_what_cannot_be_imported_is_left_out_for_good() -> None:
    learned, wiser = taught("broken", "pandas")
    learned.judge(wiser, Report(preload_errors={"broken": "no such module"}))
    learned.learn(AUTO, ["broken"])
    assert learned.summary(AUTO) == {"learned": ["pandas"], "left_out": {"broken": "no such module"}}
    assert learned.left_out(AUTO) == {"broken": "no such module"}
    assert learned.suffices(wiser.learned, AUTO), "it has tried all that is still wanted"


def test_a_sandbox_that_a_module_has_spoiled_is_made_anew_without_it() -> None:
    learned, wiser = taught("pandas", "starts_threads")
    with pytest.raises(StartupFailed) as caught:
        learned.judge(wiser, Report(preload_errors={"starts_threads": "it starts threads"}, spoiled=True))
    assert learned.blame(wiser, caught.value)
    again = learned.taught(AUTO)
    assert again.learned == ("pandas",)
    assert not learned.blame(again, caught.value), "pandas has been imported before: it is not to blame"


def test_a_module_is_blamed_for_a_sandbox_that_never_came_up_and_not_for_the_engine() -> None:
    learned, wiser = taught("hangs")
    assert not learned.blame(wiser, EngineError("the disk is full."))
    assert learned.blame(wiser, StartupFailed("it was not ready within 60 s."))
    assert "not ready within 60 s" in learned.left_out(AUTO)["hangs"]


def test_it_is_bounded() -> None:
    learned, _ = taught(*(f"m{number}" for number in range(1000)))
    assert len(learned.taught(AUTO).learned) == MAX_MODULES
    for number in range(300):
        learned.learn(shape(preload="auto", uid=number), ["pandas"])
    assert learned.taught(AUTO).learned == ()
    assert learned.taught(shape(preload="auto", uid=299)).learned == ("pandas",)


@pytest.mark.parametrize(
    ("told", "believed"),
    [
        (["pandas", "a.b_c.D1"], ("pandas", "a.b_c.D1")),
        (["", "a b", "a.", ".a", "1a", "a\n", "\u00fc", "a/b", 7, None, "m" * 201, "ok"], ("ok",)),
        (["m"] * 1000, ("m",) * 32),
        ({"pandas": 1}, ()),
        ("pandas", ()),
        (None, ()),
    ],
)
async def test_what_a_sandbox_says_of_its_imports_is_checked(
    told: Any, believed: tuple[str, ...], tmp_path: Path
) -> None:
    gate = ListeningGate(tmp_path / "gate.sock")
    with socket.socket(socket.AF_UNIX) as agent:
        agent.connect(str(tmp_path / "gate.sock"))
        await gate.connected()
        frame = json.dumps({"type": "exited", "exit": {"code": 0}, "imports": told}).encode()
        agent.sendall(struct.pack(">I", len(frame)) + frame)
        assert await asyncio.wait_for(gate.exit(), 5) == ExitStatus(code=0)
        assert gate.imports == believed
        gate.close()
