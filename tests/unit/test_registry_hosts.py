"""Where a registry is asked: folders as containerd and Docker have them."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from aircell.daemon.private_images import PrivateImages
from aircell.daemon.registry_hosts import endpoints
from aircell.errors import InvalidSpec, RightsUnknown
from aircell.status import ImageInfo
from tests.support.docker_registry import Certificate


def places(registry: str, *folders: Path) -> list[tuple[str, bool]]:
    return [(each.url, each.mirror) for each in endpoints(registry, [str(folder) for folder in folders])]


def write(folder: Path, registry: str, text: str) -> None:
    (folder / registry).mkdir(parents=True)
    (folder / registry / "hosts.toml").write_text(text)


def test_without_settings_a_registry_is_where_its_name_says() -> None:
    assert places("r.io") == [("https://r.io/v2", False)]
    assert places("docker.io") == [("https://registry-1.docker.io/v2", False)]


@pytest.mark.parametrize("host", ["localhost:5000", "127.0.0.2:5000", "localhost"])
def test_on_this_machine_it_may_have_no_certificate(host: str) -> None:
    assert places(host) == [(f"https://{host}/v2", False), (f"http://{host}/v2", False)]
    assert endpoints(host, [])[0].tls.verify_mode is ssl.CERT_NONE
    assert places("127.0.0.1.evil.example") == [("https://127.0.0.1.evil.example/v2", False)]


def test_mirrors_come_first_and_the_first_folder_counts(tmp_path: Path) -> None:
    text = """
        server = "https://upstream.example"
        [host."http://mirror.example:5000"]
        capabilities = ["pull", "resolve"]
        [host."https://blobs.example"]
        capabilities = ["pull"]
        [host."https://proxy.example/hub/v2"]
        override_path = true
        skip_verify = true
    """
    write(tmp_path / "a", "r.io", text)
    write(tmp_path / "b", "r.io", 'server = "http://other.example"')
    write(tmp_path / "b", "_default", '[host."https://everything.example"]')
    assert places("r.io", tmp_path / "a", tmp_path / "b") == [
        ("http://mirror.example:5000/v2", True),
        ("https://proxy.example/hub/v2", True),
        ("https://upstream.example/v2", False),
    ]
    assert places("q.io", tmp_path / "a", tmp_path / "b") == [
        ("https://everything.example/v2", True),
        ("https://q.io/v2", False),
    ]


def test_certificates_as_docker_has_them_and_as_containerd_has_them(tmp_path: Path) -> None:
    (tmp_path / "r.io").mkdir()
    Certificate(tmp_path / "r.io")
    (tmp_path / "r.io" / "client.cert").write_bytes((tmp_path / "r.io" / "ca.crt").read_bytes())
    (tmp_path / "r.io" / "client.key").write_bytes((tmp_path / "r.io" / "ca.key").read_bytes())
    pair = '[["../r.io/client.cert", "../r.io/client.key"]]'
    write(tmp_path, "q.io", f'server = "q.io"\nca = "../r.io/ca.crt"\nclient = {pair}')
    for registry in ("r.io", "q.io"):
        [endpoint] = endpoints(registry, [str(tmp_path)])
        assert "aircell test" in str(endpoint.tls.get_ca_certs())
        assert endpoint.url == f"https://{registry}/v2"


@pytest.mark.parametrize("text", ["[", 'ca = "gone.crt"\nserver = "x.io"', "ca = 7\nserver = 'x'", 'host = "x"'])
def test_settings_that_cannot_be_used_are_named(tmp_path: Path, text: str) -> None:
    write(tmp_path, "r.io", text)
    with pytest.raises(RightsUnknown, match=rf"the settings for the registry r\.io in {tmp_path}/r\.io cannot be used"):
        endpoints("r.io", [str(tmp_path)])


def test_what_is_private_outlives_aircelld_and_a_crash_during_a_pull(tmp_path: Path) -> None:
    file = tmp_path / "private-images.json"
    image = ImageInfo("sha256:1", "team/app", digest="team/app@sha256:2", tags=("docker.io/team/app:latest",))
    PrivateImages(file).expect("cri", "team/app")
    assert PrivateImages(file).source("cri", image) == "docker.io/team/app:latest"
    PrivateImages(file).came("cri", image)
    again = PrivateImages(file)
    assert again.source("cri", image) == "team/app@sha256:2"
    assert again.source("docker", image) == again.source("cri", ImageInfo("sha256:3", "x")) == ""
    assert again.ids("cri") == {"sha256:1"}
    again.forget("cri", ["sha256:1"])
    assert PrivateImages(file).source("cri", image) == ""


def test_what_is_built_on_a_private_image_is_as_private(tmp_path: Path) -> None:
    private = PrivateImages(tmp_path / "file")
    base, built = ImageInfo("sha256:1", "team/app", digest="team/app@sha256:2"), ImageInfo("sha256:3", "built")
    private.inherit("cri", base, built)
    assert private.source("cri", built) == ""
    private.came("cri", base)
    private.inherit("cri", base, built)
    assert PrivateImages(tmp_path / "file").source("cri", built) == "team/app@sha256:2"


def test_a_pull_that_fails_leaves_nothing_private(tmp_path: Path) -> None:
    private = PrivateImages(tmp_path / "file")
    private.expect("cri", "team/app")
    private.expect_no_more("cri", "docker.io/team/app:latest")
    assert private.source("cri", ImageInfo("sha256:1", "x", tags=("team/app",))) == ""


def test_a_record_that_cannot_be_read_stops_aircelld(tmp_path: Path) -> None:
    file = tmp_path / "private-images.json"
    file.write_text("{")
    with pytest.raises(InvalidSpec, match=rf"{file} cannot be read.*pulled with credentials"):
        PrivateImages(file)
