"""The YAML beside a DAG file: which files count, what they say, and that nothing odd gets through."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from aircell.errors import InvalidSpec
from aircell_airflow import metadata, resolve
from aircell_airflow.resolve import Kind, Said


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    root = tmp_path / "bundle"
    root.mkdir()
    return root


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def values(file: Path, bundle: Path, kind: Kind = "task") -> dict[str, Any]:
    merged: resolve.Fields = {}
    for layer in metadata.read(file, bundle, kind):
        merged |= layer
    return {".".join(path): said.value for path, said in merged.items()}


def test_nearest_folder_wins_and_the_sidecar_wins_over_folders(bundle: Path) -> None:
    write(bundle / ".aircell.yaml", "sandbox: {image: root, python: root, network: none}")
    write(bundle / "team/.aircell.yaml", "sandbox: {image: team, python: team}")
    write(bundle / "team/etl/.aircell.yaml", "# nothing yet\n")
    write(bundle / "team/etl/dag.yaml", "sandbox: {image: dag}")
    write(bundle / "team/etl/other.yaml", "sandbox: {image: other}")
    write(bundle / "elsewhere/.aircell.yaml", "sandbox: {image: elsewhere}")
    assert values(bundle / "team/etl/dag.py", bundle) == {"image": "dag", "python": "team", "network": "none"}


def test_candidates_go_from_the_root_to_the_sidecar(bundle: Path) -> None:
    assert metadata.candidates(bundle / "a/b/dag.py", bundle) == [
        bundle / ".aircell.yaml",
        bundle / "a/.aircell.yaml",
        bundle / "a/b/.aircell.yaml",
        bundle / "a/b/dag.yaml",
    ]


def test_the_sidecar_of_a_zip_lies_beside_the_zip(bundle: Path) -> None:
    write(bundle / "packed.zip", b"PK")
    expected = [bundle / ".aircell.yaml", bundle / "packed.yaml"]
    assert metadata.candidates(bundle / "packed.zip", bundle) == expected
    assert metadata.candidates(bundle / "packed.zip/inner/dag.py", bundle) == expected


def test_a_file_outside_the_bundle_is_refused(bundle: Path) -> None:
    with pytest.raises(InvalidSpec, match="does not lie in the bundle"):
        metadata.candidates(bundle.parent / "dag.py", bundle)
    with pytest.raises(InvalidSpec, match="does not lie in the bundle"):
        metadata.candidates(bundle / "../dag.py", bundle)


def test_task_and_parse_sections_apply_to_their_kind_and_know_their_lines(bundle: Path) -> None:
    path = write(
        bundle / "dag.yaml",
        "sandbox:\n"
        "  image: both\n"
        "  environment:\n"
        "    PORT: 0x10\n"
        "    RATIO: 1.10\n"
        "  task:\n"
        "    resources:\n"
        "      memory: 1Gi\n"
        "  parse:\n"
        "    network: none\n",
    )
    common = {
        ("image",): Said("both", f"{path}:2"),
        ("env", "PORT"): Said("0x10", f"{path}:4"),
        ("env", "RATIO"): Said("1.10", f"{path}:5"),
    }
    assert metadata.read(bundle / "dag.py", bundle, "task") == [
        common,
        {("resources", "memory"): Said("1Gi", f"{path}:8")},
    ]
    assert metadata.read(bundle / "dag.py", bundle, "parse") == [common, {("network",): Said("none", f"{path}:10")}]


@pytest.mark.parametrize(
    "text",
    [
        "other: 1\n",
        "tasks:\n  sandbox:\n    image: x\n",
        "- sandbox: {image: x}\n",
        "{% if jinja %}\nkey: *not yaml at all\n",
        "a: 1\n---\nb: 2\n",
        "x: &x [1]\ny: *x\n",
        "name: sandbox\n" + "filler: 0123456789\n" * 5000,
        b"latin: \xe9\n",
        "just text",
        "",
    ],
)
def test_a_yaml_without_our_key_is_left_alone(bundle: Path, text: str | bytes) -> None:
    write(bundle / "dag.yaml", text)
    assert metadata.read(bundle / "dag.py", bundle, "task") == []


@pytest.mark.parametrize(
    "text",
    ["sandbox: {image: x}", "---\nsandbox: {image: x}", "'sandbox': {image: x}", '"sandbox" : {image: x}',
     "{sandbox: {image: x}}", "other: 1\nsandbox:\n  image: x\n", "\ufeffsandbox: {image: x}",
     "sandbox:\r\n  image: x\r\n", "--- {sandbox: {image: x}}", "defaults: &d [1]\nmore: *d\nsandbox: {image: x}"],
)  # fmt: skip
def test_our_key_is_found_however_it_is_written(bundle: Path, text: str) -> None:
    write(bundle / "dag.yaml", text)
    assert values(bundle / "dag.py", bundle) == {"image": "x"}


def refusal(bundle: Path, kind: Kind = "parse") -> str:
    started = time.monotonic()
    with pytest.raises(InvalidSpec) as caught:
        metadata.read(bundle / "dag.py", bundle, kind)
    assert time.monotonic() - started < 5
    message = str(caught.value)
    assert len(message) < 1500
    return message


LAUGHS = "sandbox:\n  env:\n    a: &a [lol, lol]\n" + "".join(
    f"    {name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sandbox: {image: x, imagee: y}", ":1: imagee: unknown key"),
        ("sandbox:\n  image: x\n  task:\n    image: y\n    oops: 1\n", ":5: oops: unknown key"),
        ("sandbox:\n  task: {parse: {image: y}}\n", ":2: parse: unknown key"),
        ("sandbox:\n  image: [x]\n", ":2: image: Input should be a valid string"),
        ("sandbox: text\n", ":1: sandbox: must be a mapping, not 'text'"),
        ("sandbox:\n  task: 5\n", ":2: task: must be a mapping, not 5"),
        ("sandbox:\n  image: x\n  image: y\n", ":3: sandbox.image: is set twice"),
        ("sandbox:\n  env:\n    ON: yes\n", ":3: env.ON: Input should be a valid string"),
        ("sandbox:\n  resources: {pids: true}\n", ":2: resources.pids: must not be true or false"),
        ("sandbox:\n  volumes:\n    - /a:/b\n    - nonsense\n", ":4: volumes[1]: 'nonsense' is not a mount"),
        ("sandbox:\n  ? [a, b]\n  : c\n", ":2: sandbox: a key must be a plain word"),
        ("sandbox:\n  image: x\n  env: {<<: {A: b}}\n", ":3: env.<<: Input should be a valid string"),
        ("sandbox:\n  image: !!python/object/apply:os.system [id]\n", ":2: image: Input should be a valid string"),
        ("sandbox:\n  image: !!python/name:os.system\n", ":2: sandbox.image: cannot be read: could not determine"),
        ("sandbox:\n  resources: {pids: " + "9" * 5000 + "}\n", ":2: sandbox.resources.pids: cannot be read"),
        ("sandbox:\n  image: 'x\n", ": is not YAML: found unexpected end of stream"),
        ("sandbox: {}\n---\nsandbox: {}\n", ":2: is not YAML: but found another document"),
        ("sandbox:\n\timage: x\n", ":2: is not YAML: found character '\\t' that cannot start any token"),
        ("sandbox:\n  image: \x07\n", ": is not YAML: unacceptable character"),
        (b"sandbox:\n  # caf\xe9\n  image: x\n", ":2: is not UTF-8"),
        (LAUGHS, ":4: sandbox.env.b.0: aliases (*name) are not allowed here"),
        ("sandbox: &s\n  env: *s\n", ":2: sandbox.env: aliases (*name) are not allowed here"),
        ("sandbox: " + "[" * 30_000, ": is nested too deeply"),
        ("sandbox: " + "{a: " * 10_000, ": is nested too deeply"),
        ("sandbox:\n" + "  # filler\n" * 7000, ": is over the limit of 65536 bytes"),
        ("sandbox:\n  env:\n" + "".join(f"    K{n}: v\n" for n in range(7000)), ": is over the limit of 65536 bytes"),
    ],
)
def test_anything_odd_is_refused_with_file_line_and_key(bundle: Path, text: str | bytes, message: str) -> None:
    path = write(bundle / "dag.yaml", text)
    refused = refusal(bundle)
    assert refused.startswith(str(path))
    assert message in refused


@pytest.mark.parametrize("text", ["image: x\n", "- a\n", "sandbox: {}\nimage: x\n", "text\n"])
def test_a_folder_file_has_our_key_and_no_other(bundle: Path, text: str) -> None:
    write(bundle / ".aircell.yaml", text)
    assert "sandbox:" in refusal(bundle)


def test_a_link_out_of_the_bundle_is_refused_and_says_nothing_of_what_it_found(bundle: Path) -> None:
    secret = write(bundle.parent / "airflow.cfg", "sandbox: {fernet_key: s3cret}")
    (bundle / "dag.yaml").symlink_to(secret)
    assert refusal(bundle) == f"{bundle / 'dag.yaml'}: is a symbolic link out of the bundle {bundle}"


def test_a_linked_folder_out_of_the_bundle_is_refused(bundle: Path) -> None:
    write(bundle.parent / "outside/.aircell.yaml", "sandbox: {image: x}")
    (bundle / "linked").symlink_to(bundle.parent / "outside")
    with pytest.raises(InvalidSpec, match="symbolic link out of the bundle"):
        metadata.read(bundle / "linked/dag.py", bundle, "task")


def test_links_inside_the_bundle_and_a_linked_bundle_are_fine(bundle: Path) -> None:
    write(bundle / "shared/common.yaml", "sandbox: {image: common}")
    (bundle / "dag.yaml").symlink_to("shared/common.yaml")
    link = bundle.parent / "current"
    link.symlink_to(bundle)
    assert values(bundle / "dag.py", bundle) == {"image": "common"}
    assert values(link / "dag.py", link) == {"image": "common"}


def test_a_link_to_nothing_is_refused(bundle: Path) -> None:
    (bundle / "dag.yaml").symlink_to("nowhere.yaml")
    assert refusal(bundle) == f"{bundle / 'dag.yaml'}: is a symbolic link to nothing"


def test_what_is_no_regular_file_is_refused_at_once(bundle: Path) -> None:
    os.mkfifo(bundle / "dag.yaml")
    assert refusal(bundle) == f"{bundle / 'dag.yaml'}: is not a regular file"
    (bundle / "dag.yaml").unlink()
    (bundle / "dag.yaml").mkdir()
    assert refusal(bundle) == f"{bundle / 'dag.yaml'}: is not a regular file"


def test_an_unreadable_file_is_refused(bundle: Path) -> None:
    (bundle / "dag.yaml").symlink_to("dag.yaml")
    assert refusal(bundle) == f"{bundle / 'dag.yaml'}: cannot be read: Too many levels of symbolic links"


VALID = b"""\
sandbox:
  image: a:1
  environment: {TZ: UTC, N: 1}
  volumes:
    - /a:/b:ro
    - {source: /c, target: /d}
  resources: {memory: 1Gi, cpus: 1.5, pids: 100}
  task: {preload: [json], network: pod}
  parse: {user: 1000}
"""
FRAGMENTS = (
    *(b"&a ", b"*a", b"<<: ", b"!!int ", b"!!python/object:x ", b"{", b"[", b"]", b"\t", b"? ", b"- ", b": ", b"\x00"),
    *(b"\xff", b"1e999", b".inf", b"~", b"'", b'"', b"|\n", b"%YAML 9\n", b"---\n", b"2001-02-30", b"1:2:3"),
)


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_file_is_read_or_refused_and_nothing_else(bundle: Path, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(40):
        content = bytearray(VALID)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(content))
            content[at : at + chance.randint(0, 8)] = chance.choice(FRAGMENTS)
        path = write(bundle / ".aircell.yaml", bytes(content))
        refused = ""
        try:
            resolve.build([said({"image": "x"}), *metadata.read(bundle / "dag.py", bundle, "task")])
        except InvalidSpec as error:
            refused = str(error)
        assert not refused or str(path) in refused, content


def said(values: dict[str, Any]) -> resolve.Fields:
    return resolve.say(values, lambda _: "a test")


def test_requirements_here_and_in_a_file(bundle: Path) -> None:
    write(bundle / ".aircell.yaml", "sandbox: {requirements: [pandas]}")
    write(bundle / "team/needs.txt", "# comment\nhumanize==4.0\n")
    write(bundle / "team/dag.yaml", "sandbox: {requirements_file: needs.txt}")
    write(bundle / "other.yaml", "sandbox: {task: {requirements_file: team/needs.txt}, requirements: [a]}")
    assert values(bundle / "x.py", bundle) == {"requirements": ["pandas"]}
    assert values(bundle / "team/dag.py", bundle) == {"requirements": ["humanize==4.0"]}
    assert values(bundle / "other.py", bundle, "parse") == {"requirements": ["a"]}
    assert values(bundle / "other.py", bundle) == {"requirements": ["humanize==4.0"]}


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("requirements_file: ../outside.txt", r"dag.yaml:1: requirements_file: .*lies outside of the bundle"),
        ("requirements_file: /etc/passwd", "lies outside of the bundle"),
        ("requirements_file: link.txt", "is a symbolic link out of the bundle"),
        ("requirements_file: missing.txt", "dag.yaml:1: requirements_file: there is no file"),
        ("requirements_file: [a]", "must be the path of a file"),
        ("{requirements_file: good.txt, requirements: [a]}", "the same as requirements"),
        ("requirements_file: option.txt", r"option.txt:2: the option --index-url"),
        ("requirements_file: binary.txt", "is not UTF-8"),
        ("requirements: pandas", "dag.yaml:1: requirements:"),
        ("requirements: ['-r x']", r"requirements.0: .*is no requirement"),
    ],
)
def test_requirements_that_are_refused(bundle: Path, said: str, why: str) -> None:
    write(bundle.parent / "outside.txt", "secret\n")
    (bundle / "link.txt").symlink_to(bundle.parent / "outside.txt")
    write(bundle / "good.txt", "a\n")
    write(bundle / "option.txt", "a\nb --index-url=http://evil\n")
    write(bundle / "binary.txt", b"\xff\xfe")
    write(bundle / "dag.yaml", f"sandbox: {said if said.startswith('{') else '{' + said + '}'}")
    with pytest.raises(InvalidSpec, match=why):
        values(bundle / "dag.py", bundle)
