"""The error tree: families, text, and the trip over the wire."""

from __future__ import annotations

import pytest

from aircell import errors


def _all(cls: type[errors.AircellError]) -> list[type[errors.AircellError]]:
    """Of ours: tests have some of their own."""
    ours = [child for child in cls.__subclasses__() if child.__module__ == errors.__name__]
    return [cls, *(found for child in ours for found in _all(child))]


@pytest.mark.parametrize("cls", _all(errors.AircellError))
def test_every_error_comes_back_from_the_wire_as_itself(cls: type[errors.AircellError]) -> None:
    error = cls("it broke", hint="Mend it.", sandbox="sb-1", detail="line 1\nline 2")
    again = errors.from_wire(error.to_wire())
    assert type(again) is cls
    assert again.to_wire() == error.to_wire()
    assert str(again) == "sandbox sb-1: it broke Mend it."


def test_the_three_families() -> None:
    families = {cls.__name__: cls.family for cls in _all(errors.AircellError)}
    assert {name for name, family in families.items() if family == "refused"} == {
        "Refused", "RefusedByPolicy", "UnsupportedSpec", "InvalidSpec",
    }  # fmt: skip
    assert families["StartupFailed"] == families["ImageNotFound"] == "user"
    assert families["EngineUnavailable"] == families["SandboxLost"] == "machinery"


def test_an_unknown_kind_is_still_an_error() -> None:
    assert str(errors.from_wire({"kind": "FromTheFuture", "message": "m"})) == "m"
