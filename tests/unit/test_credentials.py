"""Where registry credentials come from, and which of them an image gets."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from aircell.backends.base import RegistryAuth
from aircell.daemon import credential_helper, docker_config
from aircell.daemon.credentials import Credentials, Keyring
from aircell.errors import CredentialsUnavailable, InvalidSpec
from aircell.reference import Reference, own_digest

DIGEST = "sha256:" + "0" * 64
HUB = Reference.parse("alpine")
TEAM = Reference.parse("registry.example:5000/team/app:1")


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/alpine:3", "docker.io/library/alpine:3"),
        ("team/app:1", "docker.io/team/app:1"),
        ("localhost/a", "localhost/a:latest"),
        ("h:5000/a/b", "h:5000/a/b:latest"),
        (f"r.io/a:1@{DIGEST}", f"r.io/a@{DIGEST}"),
    ],
)
def test_every_way_to_write_a_reference_has_one_full_name(text: str, full: str) -> None:
    assert str(Reference.parse(text)) == full
    assert Reference.parse(full) == Reference.parse(text)


def test_an_image_of_two_registries_has_the_digest_of_the_one_that_was_asked_for() -> None:
    digests = [f"a.io/x@{DIGEST}", f"library/b@{DIGEST}"]
    assert own_digest("docker.io/library/b:1", ["a.io/b@1", *digests]) == digests[1]
    assert own_digest("elsewhere/x:1", digests) == digests[0]
    assert own_digest("x", []) == ""


@pytest.mark.parametrize(
    ("key", "covered"),
    [
        ("registry.example:5000", True),
        ("https://registry.example:5000/v2/", True),
        ("registry.example:5000/team", True),
        ("registry.example:5000/team/app", True),
        ("*.example:5000", True),
        ("registry.example:5000/te", False),
        ("registry.example", False),
        ("*:5000", False),
        ("example:5000", False),
        ("evil-registry.example:5000", False),
    ],
)
def test_which_images_a_key_is_for(key: str, covered: bool) -> None:
    assert docker_config.covers(key, TEAM) is covered


def test_docker_hub_goes_by_its_old_key() -> None:
    assert docker_config.covers("https://index.docker.io/v1/", HUB)
    assert not docker_config.covers("https://index.docker.io/v1/", TEAM)


def entry(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def config(folder: Path, **content: Any) -> str:
    file = folder / "config.json"
    file.write_text(json.dumps(content))
    return str(file)


def helper(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str, name: str = "test") -> None:
    program = folder / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


async def test_the_longest_key_wins(tmp_path: Path) -> None:
    auths = {
        "registry.example:5000": entry("host", "1"),
        "registry.example:5000/team": entry("team", "2:3"),
        "*.example:5000": entry("pattern", "4"),
        "https://index.docker.io/v1/": {"identitytoken": "5"},
        "named.example": {"username": "plain", "password": "6"},
        "empty.example": {},
    }
    file = config(tmp_path, auths=auths)
    assert await docker_config.find(file, TEAM, "these") == RegistryAuth("team", "2:3")
    assert await docker_config.find(file, HUB, "these") == RegistryAuth(identity_token="5")
    assert await docker_config.find(file, Reference.parse("named.example/x"), "") == RegistryAuth("plain", "6")
    for nothing in ("empty.example/x", "other.example/x"):
        assert await docker_config.find(file, Reference.parse(nothing), "these") is None


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": {"registry.example:5000": {"auth": "s3cret!"}}}'])
async def test_a_file_that_cannot_be_used_is_named_and_not_quoted(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(InvalidSpec, match=rf"these cannot be had from {file}: it is not Docker's") as caught:
        await docker_config.find(str(file), TEAM, "these")
    assert "s3cret" not in f"{caught.value}{caught.value.__cause__}"
    with pytest.raises(InvalidSpec, match="No such file"):
        await docker_config.find(f"{file}.gone", TEAM, "these")


async def test_a_helper_goes_before_a_store_and_that_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(tmp_path, monkeypatch, """read at; echo '{"Username": "helper at '$at'", "Secret": "1"}'""", "cloud")
    nothing = 'read at; case $at in https*) echo \'{"Username": "<token>", "Secret": "2"}\';; *) '
    helper(tmp_path, monkeypatch, nothing + "echo credentials not found in native keychain; exit 1;; esac", "store")
    auths = {"kept.example": entry("file", "3")}
    file = config(tmp_path, auths=auths, credHelpers={"registry.example:5000": "cloud"}, credsStore="store")
    assert await docker_config.find(file, TEAM, "") == RegistryAuth("helper at registry.example:5000", "1")
    assert await docker_config.find(file, HUB, "") == RegistryAuth(identity_token="2")
    assert await docker_config.find(file, Reference.parse("kept.example/x"), "") == RegistryAuth("file", "3")
    assert await docker_config.find(file, Reference.parse("other.example/x"), "") is None


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "echo s3cret; echo s3cret >&2; exit 3",
            r"-test failed with code 3\. See what `echo r\.io \| ",
        ),
        ("echo s3cret", "does not answer as a credential helper does"),
        ("exec kill -9 $$", "failed with code -9"),
    ],
)
async def test_a_helper_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str) -> None:
    helper(tmp_path, monkeypatch, script)
    with pytest.raises(CredentialsUnavailable, match=said) as caught:
        await credential_helper.ask("test", "r.io", "these")
    assert "s3cret" not in f"{caught.value}{caught.value.__cause__}"


async def test_a_helper_that_hangs_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(tmp_path, monkeypatch, f"sleep 600 & echo $! >{tmp_path}/child; wait")
    monkeypatch.setattr(credential_helper, "_SECONDS", 1.0)
    with pytest.raises(CredentialsUnavailable, match=r"these cannot be had: .* did not answer within 1 s"):
        await credential_helper.ask("test", "r.io", "these")
    await gone(int((tmp_path / "child").read_text()))


async def gone(pid: int) -> None:
    """Returns once a process has ended, reaped or not."""
    deadline = time.monotonic() + 20
    while alive(pid):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_a_helper_that_is_not_there() -> None:
    with pytest.raises(InvalidSpec, match="docker-credential-nobody cannot be started: No such file or directory"):
        await credential_helper.ask("nobody", "r.io", "these")


async def test_a_keyring_names_the_credentials_the_registry_and_the_remedy(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    keyring = Keyring(
        {
            "team": Credentials(registry="registry.example:5000", username="u", password_file=str(secret)),
            "gone": Credentials(registry="registry.example:5000", identity_token_file=f"{secret}.gone"),
        }
    )
    assert await keyring.read(None, TEAM) is None
    assert await keyring.read("team", TEAM) == RegistryAuth("u", "s3cret")
    assert "s3cret" not in repr(await keyring.read("team", TEAM))
    for name, image, said in (
        ("other", TEAM, "no registry credentials called 'other' for registry.example:5000; it has: team, gone"),
        ("team", HUB, r"'team' hold nothing for docker.io/library/alpine.* leave `registry_credentials` out"),
        ("gone", TEAM, r"'gone' for registry.example:5000 cannot be read from .*gone: No such file"),
    ):
        with pytest.raises(InvalidSpec, match=said) as caught:
            await keyring.read(name, image)
        assert caught.value.hint
