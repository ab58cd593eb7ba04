"""Requirements of a sandbox: lines that pip understands, as authors write them. Pure.

See https://pip.pypa.io/en/stable/reference/requirements-file-format/, of which options are left out: what indexes
there are is for the node to say.
"""

from __future__ import annotations

import re

MAX_LINES = 500
_BEGINS = re.compile(r"[A-Za-z0-9]")
_HASH = re.compile(r"--hash=[a-z0-9]+:[0-9a-f]+")
_COMMENT = re.compile(r"(^|\s)#.*$")


def read(text: str) -> list[tuple[int, str]]:
    """The requirements in a file, each with the number of its first line; comments and empty lines are left out."""
    found: list[tuple[int, str]] = []
    joined, first = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        first = first if joined else number
        joined += line.removesuffix("\\")
        if line.endswith("\\"):
            continue
        if requirement := _COMMENT.sub("", joined).strip():
            found.append((first, requirement))
        joined = ""
    return [*found, (first, joined.strip())] if joined.strip() else found


def problem(line: str) -> str:
    """What is wrong with one requirement, as far as that can be told without pip; empty when nothing is."""
    if "\n" in line or "\0" in line:
        return "must be one line"
    if not _BEGINS.match(line):
        return f"{line[:60]!r} is no requirement; write NAME, NAME==VERSION or the like (options are not permitted)"
    options = [word for word in line.split() if word.startswith("-") and not _HASH.fullmatch(word)]
    return f"the option {options[0][:60]} is not permitted here" if options else ""
