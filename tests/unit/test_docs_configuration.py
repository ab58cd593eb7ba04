"""The tables of the documentation are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aircell.spec import Model, SandboxSpec
from aircell_airflow.provider_info import NODE_OPTIONS, SPEC_OPTIONS, Option

DOCS = Path(__file__).parents[2] / "docs"


def rows(page: str) -> list[list[str]]:
    lines = (DOCS / page).read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


@pytest.mark.parametrize("option", NODE_OPTIONS + SPEC_OPTIONS, ids=lambda option: option.name)
def test_every_option_has_its_row_as_the_code_has_it(option: Option) -> None:
    quoted = [f"`{text}`" if text else "" for text in (option.name, option.default, option.field)]
    assert [*quoted, option.description] in rows("configuration.md")


def test_no_option_is_documented_that_does_not_exist() -> None:
    names = [option.name for option in NODE_OPTIONS + SPEC_OPTIONS]
    assert [row[0].strip("`") for row in rows("configuration.md") if len(row) == 4 and row[0].startswith("`")] == names


def test_every_key_of_the_spec_is_in_the_metadata_page_and_no_other() -> None:
    documented: list[str] = []
    for first, *_ in rows("metadata.md"):
        for name in re.findall(r"`([a-z_.]+)`", first):
            documented.append(documented[-1].split(".")[0] + name if name.startswith(".") else name)
    expected = {"environment", "volumes", "requirements_file"}
    for name, field in SandboxSpec.model_fields.items():
        default = field.get_default(call_default_factory=True)
        expected |= {f"{name}.{part}" for part in type(default).model_fields} if isinstance(default, Model) else {name}
    assert sorted(documented) == sorted(expected)
