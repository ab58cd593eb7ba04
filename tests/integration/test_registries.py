"""Images from a real registry, on both engines: whose credentials are used, and who may use what is on the node."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from aircell.backends.base import RegistryAuth
from aircell.backends.cri.backend import CriBackend
from aircell.backends.docker.backend import DockerBackend
from aircell.daemon import distribution
from aircell.daemon.registry_hosts import endpoints
from aircell.errors import (
    CredentialsUnavailable,
    ImageNotFound,
    ImageUnauthorized,
    InvalidSpec,
    RegistryFailed,
    RightsUnknown,
    StartupFailed,
)
from aircell.reference import Reference
from tests.support.docker_node import DockerNode
from tests.support.docker_registry import SECRETS, Shop, shop
from tests.support.faulty import door
from tests.support.node import Node
from tests.support.registry import Image

HELPER = """\
#!/bin/sh
read registry
echo "$registry" >>{folder}/asked
cat {folder}/answer 2>/dev/null || {{ echo "credentials not found in native keychain"; exit 1; }}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with shop(tmp_path_factory.mktemp("shop")) as made:
        yield made


@pytest.fixture(scope="module", params=[Node, DockerNode], ids=["cri", "docker"])
def site(request: pytest.FixtureRequest, store: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node on either engine that has credentials from every kind of source."""
    node: Node = request.param()
    folder = tmp_path_factory.mktemp("credentials")
    helper = folder / "docker-credential-cloud"
    helper.write_text(HELPER.format(folder=folder))
    helper.chmod(0o755)
    node.allow_plain_http(store.open.host)
    node.allow_plain_http(store.team.host)
    node.trust(store.locked.host, store.certificate)
    node.config["registry_credentials"] = credentials(folder, store)
    node.config["image_rights"] = {"registry_hosts": [str(node.root / "registries")]}
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{folder}:{path}"
    try:
        node.start()
        yield node
    finally:
        os.environ["PATH"] = path
        node.close()


def credentials(folder: Path, store: Shop) -> dict[str, Any]:
    """By name, as aircelld's configuration has them."""
    for user, secret in SECRETS.items():
        (folder / user).write_text(f"{secret}\n")
    auth = base64.b64encode(f"alice:{SECRETS['alice']}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {store.locked.host: {"auth": auth}}}))
    (folder / "helped.json").write_text(json.dumps({"credHelpers": {store.locked.host: "cloud"}}))
    (folder / "wrong").write_text("no-longer-valid")
    alice = {"username": "alice", "password_file": str(folder / "alice")}
    store.tokens.identity_tokens["alice-identity"] = "alice"
    (folder / "identity").write_text("alice-identity")
    return {
        "alice": {"registry": store.team.host, **alice},
        "bob": {"registry": store.team.host, "username": "bob", "password_file": str(folder / "bob")},
        "identity": {"registry": store.team.host, "identity_token_file": str(folder / "identity")},
        "file": {"registry": store.locked.host, **alice},
        "config": {"docker_config": str(folder / "config.json")},
        "helper": {"registry": store.locked.host, "helper": "cloud"},
        "config-helper": {"docker_config": str(folder / "helped.json")},
        "wrong": {"registry": store.locked.host, "username": "alice", "password_file": str(folder / "wrong")},
        "no-helper": {"registry": store.locked.host, "helper": "nobody-has-it"},
    }


def folder_of(site: Node) -> Path:
    return Path(site.config["registry_credentials"]["config"]["docker_config"]).parent


def want(site: Node, reference: str, credentials: str | None = None, policy: str = "missing") -> dict[str, Any]:
    """Makes sure of an image as a launch does; raises what a launch would fail of."""
    [backend] = site.config["backends"]
    fields = {"backend": backend, "image": reference, "credentials": credentials, "pull_policy": policy}
    image: dict[str, Any] = list(site.client.call("pull", **fields))[-1]["image"]
    return image


def test_a_certificate_of_ones_own(site: Node, store: Shop) -> None:
    digest = store.stock("own-certificate")
    assert want(site, store.locked.reference("own-certificate"), "file")["digest"].endswith(digest)


@pytest.mark.parametrize("source", ["file", "config", "helper", "config-helper"])
def test_every_source_of_credentials(site: Node, store: Shop, source: str) -> None:
    folder = folder_of(site)
    (folder / "answer").write_text(json.dumps({"Username": "alice", "Secret": SECRETS["alice"]}))
    store.stock(f"source-{source}")
    assert want(site, store.locked.reference(f"source-{source}"), source)["id"]


def test_a_helper_is_asked_for_each_pull_so_that_tokens_may_change(site: Node, store: Shop) -> None:
    folder = folder_of(site)
    (folder / "answer").write_text(json.dumps({"Username": "alice", "Secret": "expired"}))
    store.stock("rotating")
    reference = store.locked.reference("rotating")
    with pytest.raises(ImageUnauthorized, match="the registry credentials 'helper'"):
        want(site, reference, "helper")
    (folder / "answer").write_text(json.dumps({"Username": "alice", "Secret": SECRETS["alice"]}))
    assert want(site, reference, "helper")["id"]
    assert store.locked.host in (folder / "asked").read_text()


def test_a_helper_that_has_nothing_or_is_not_there(site: Node, store: Shop) -> None:
    (folder_of(site) / "answer").unlink(missing_ok=True)
    store.stock("unhelped")
    reference = store.locked.reference("unhelped")
    with pytest.raises(InvalidSpec, match=rf"'helper' hold nothing for {store.locked.host}/unhelped"):
        want(site, reference, "helper")
    with pytest.raises(InvalidSpec, match="docker-credential-nobody-has-it cannot be started: No such file"):
        want(site, reference, "no-helper")


def test_a_helper_that_fails(site: Node, store: Shop) -> None:
    (folder_of(site) / "answer").write_text('{"Secret": "half-')
    with pytest.raises(
        CredentialsUnavailable, match=r"'helper' .*docker-credential-cloud does not answer as a"
    ) as caught:
        want(site, store.locked.reference("own-certificate-2"), "helper")
    assert "half-" not in str(caught.value)


def test_credentials_are_shown_to_no_other_registry(site: Node, store: Shop) -> None:
    store.stock("elsewhere")
    with pytest.raises(InvalidSpec, match=rf"'alice' hold nothing for {store.open.host}/elsewhere"):
        want(site, store.open.reference("elsewhere"), "alice")
    assert store.open.requests("GET /v2/elsewhere") == []


def test_a_pull_is_tried_again_when_its_registry_fails(site: Node, store: Shop) -> None:
    store.stock("again")
    with door(store.open.host, "busy") as behind, ThreadPoolExecutor() as pool:
        site.allow_plain_http(behind.host)
        pull = pool.submit(want, site, behind.reference("again"))
        site.wait_until(lambda: "Trying again" in site.log.read_text(), "the pull has failed once")
        behind.mended = True
        assert pull.result(60)["id"]


def test_a_registry_that_stays_away_is_given_up(site: Node) -> None:
    with pytest.raises(RegistryFailed, match=r"127\.0\.0\.1:9/image:1 .*cannot be reached"):
        want(site, "127.0.0.1:9/image:1")


def test_one_pull_serves_all_who_want_the_same(site: Node, store: Shop) -> None:
    image = Image(size=3_000_000)
    digest = store.stock("together", image)
    with ThreadPoolExecutor() as pool:
        pulls = [pool.submit(want, site, store.open.reference("together")) for _ in range(6)]
        assert all(pull.result(60)["digest"].endswith(digest) for pull in pulls)
    [layer] = [name for name, blob in image.blobs.items() if len(blob) > 3_000_000]
    assert len(store.open.requests(f"GET /v2/together/blobs/{layer}")) == 1


def test_pull_policies(site: Node, store: Shop) -> None:
    store.stock("policies")
    reference = store.open.reference("policies")

    def asked(policy: str) -> bool:
        before = len(store.open.requests("/v2/policies/manifests"))
        want(site, reference, policy=policy)
        return len(store.open.requests("/v2/policies/manifests")) > before

    with pytest.raises(ImageNotFound, match="pull_policy is `never`"):
        asked("never")
    assert [asked(policy) for policy in ("missing", "missing", "never", "always")] == [True, False, False, True]
    moved = store.stock("policies")
    assert not want(site, reference)["digest"].endswith(moved)
    assert want(site, reference, policy="always")["digest"].endswith(moved)


def test_which_image_a_tag_was_is_in_ps_the_labels_and_the_log(site: Node, store: Shop) -> None:
    digest = f"{store.open.host}/runs@{store.stock('runs')}"
    sandbox = site.failure(StartupFailed, image=store.open.reference("runs")).sandbox
    [listed] = [each for each in site.ps(all=True) if each["id"] == sandbox]
    assert (listed["digest"], listed["labels"]["aircell.dev/image"]) == (digest, digest)
    creating = next(event for event in site.history(sandbox) if event["event"] == "creating")
    assert creating["digest"] == digest
    assert f"sandbox {sandbox} is made of {digest}" in site.log.read_text()


def test_an_image_that_came_from_no_registry_goes_by_its_id(site: Node) -> None:
    site.load("base")
    with site.launch("cat") as sandbox:
        site.wait_until(lambda: site.history(sandbox.id)[-1]["event"] == "running", "it runs", 60)
        [listed] = site.ps()
        assert listed["digest"].startswith("sha256:")
        assert asyncio.run(labels(site))["aircell.dev/image"] == listed["digest"]
        site.answer("stop", sandbox=sandbox.id, grace=0)


async def labels(site: Node) -> Mapping[str, str]:
    """Of the only sandbox, as the engine has them."""
    docker = site.config["backends"].get("docker")
    backend = DockerBackend(docker) if docker else CriBackend({"socket": site.containerd_socket})
    [sandbox] = await backend.sandboxes({})
    await backend.close()
    return sandbox.labels


def test_who_is_refused_and_what_to_do(site: Node, store: Shop) -> None:
    store.stock("refused")
    reference = store.locked.reference("refused")
    with pytest.raises(
        ImageUnauthorized, match=r"'wrong'.*'wrong' in aircelld's configuration is still valid"
    ) as caught:
        want(site, reference, "wrong")
    assert "no-longer-valid" not in str(caught.value) + caught.value.detail
    with pytest.raises(ImageUnauthorized, match=r"without credentials.*registry_credentials"):
        want(site, store.team.reference("refused"))


@pytest.fixture
def private(store: Shop) -> Iterator[str]:
    """The reference of an image that alice alone may have."""
    digest = store.stock("private")
    store.tokens.repositories["alice"].add("private")
    yield f"{store.team.host}/private@{digest}"
    store.tokens.repositories["alice"].discard("private")


def test_an_image_on_the_node_is_for_those_to_whom_its_registry_gives_it(site: Node, store: Shop, private: str) -> None:
    image = want(site, private, "alice")
    assert want(site, private, "alice", "never") == image
    for stranger in (None, "bob"):
        for policy in ("missing", "never"):
            with pytest.raises(ImageUnauthorized, match="is on this node, but its registry does not give it to"):
                want(site, private, stranger, policy)
        with pytest.raises(ImageUnauthorized):
            want(site, private, stranger, "always")
        with pytest.raises(ImageUnauthorized):
            want(site, image["id"], stranger)
    assert want(site, private, "identity") == image


def test_what_a_registry_said_holds_for_a_while(site: Node, store: Shop, private: str) -> None:
    want(site, private, "alice")
    asked = len(store.tokens.given)
    want(site, private, "alice")
    assert len(store.tokens.given) == asked
    store.tokens.repositories["bob"].add("private")
    try:
        want(site, private, "bob")
    finally:
        store.tokens.repositories["bob"].discard("private")
    asked = len(store.tokens.given)
    want(site, private, "bob")
    assert len(store.tokens.given) == asked


def test_a_restart_forgets_who_was_let_in_and_not_what_is_private(site: Node, store: Shop, private: str) -> None:
    want(site, private, "alice")
    store.team.stop()
    try:
        want(site, private, "alice")
        site.restart()
        for user in ("alice", None):
            with pytest.raises(RightsUnknown, match=rf"cannot be asked who may use it .*{store.team.host}"):
                want(site, private, user)
    finally:
        store.team.start()
    want(site, private, "alice")
    with pytest.raises(ImageUnauthorized):
        want(site, private)


def test_a_certificate_that_nobody_vouches_for_proves_nothing(site: Node, store: Shop) -> None:
    store.stock("unproved")
    reference = store.locked.reference("unproved")
    want(site, reference, "file")
    hosts = site.root / "registries" / store.locked.host / "hosts.toml"
    before = hosts.read_text()
    hosts.write_text(before.replace("ca =", "# ca ="))
    try:
        with pytest.raises(RightsUnknown, match="certificate"):
            want(site, reference, "wrong")
    finally:
        hosts.write_text(before)
    with pytest.raises(ImageUnauthorized):
        want(site, reference, "wrong")


def test_what_everybody_could_use_stays_so_when_somebody_pulls_it_with_credentials(site: Node, store: Shop) -> None:
    store.stock("everybodys")
    image = want(site, store.open.reference("everybodys"))
    assert want(site, store.locked.reference("everybodys"), "file")["id"] == image["id"]
    assert want(site, store.open.reference("everybodys"))["id"] == image["id"]


async def test_what_root_has_in_its_netrc_is_nobodys_right(
    store: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.stock("netrc")
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login alice password {SECRETS['alice']}\n")
    monkeypatch.setenv("NETRC", str(netrc))
    image = Reference.parse(store.locked.reference("netrc"))
    where = endpoints(image.registry, [])
    assert not await distribution.gives(where, image, None)
    assert await distribution.gives(where, image, RegistryAuth("alice", SECRETS["alice"]))


def test_an_image_that_was_pulled_without_credentials_is_for_everybody(site: Node, store: Shop) -> None:
    store.stock("public")
    want(site, store.open.reference("public"))
    store.open.stop()
    try:
        want(site, store.open.reference("public"))
        site.restart()
        want(site, store.open.reference("public"))
    finally:
        store.open.start()


def test_no_secret_is_anywhere(site: Node, store: Shop, private: str) -> None:
    want(site, private, "alice")
    state = (site.state / "private-images.json").read_text()
    assert private in state
    for text in (state, site.log.read_text()):
        assert not any(secret in text for secret in (*SECRETS.values(), "alice-identity", "no-longer-valid"))
