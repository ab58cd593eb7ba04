"""aircelld's configuration: the file, the command line over it, and what is said when either is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from aircell.daemon import config
from aircell.daemon.config import Config, load
from aircell.daemon.paths import map_path, on_node
from aircell.errors import InvalidSpec
from aircell.spec import Mount

EXAMPLE = Path(__file__).parents[2] / "docs" / "aircelld.example.yaml"


def test_the_example_is_every_default_and_leaves_out_no_key() -> None:
    content = yaml.safe_load(EXAMPLE.read_text())
    assert Config.model_validate(content) == Config()
    assert keys(content) == keys(Config().model_dump(mode="json"))


def keys(content: dict[str, Any], above: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    for name, value in content.items():
        found |= {(*above, name)} | (keys(value, (*above, name)) if isinstance(value, dict) else set())
    return found


def test_without_a_file_and_with_a_flag_there_is_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_FILE", Path("/nonexistent"))
    assert load(None, {"managed_containerd": True}) == Config(managed_containerd=True)


def test_a_group_is_let_in_only_with_the_folders_that_it_may_see(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("socket_group: daemon\n")
    with pytest.raises(InvalidSpec, match=r"set policy\.worker_mounts"):
        load(file, {})
    file.write_text("socket_group: daemon\npolicy: {worker_mounts: [/opt/dags]}\n")
    assert load(file, {}).policy.worker_mounts == ("/opt/dags",)


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("socket_path: /a.sock\nreap_interval: 5\nlog: {level: debug}\n")
    loaded = load(file, {"socket_path": "/b.sock", "log": {"format": "json"}})
    assert loaded == Config(
        socket_path="/b.sock", reap_interval=5, log=config.LogSettings(level="debug", format="json")
    )


def test_toml_says_the_same(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('reap_interval = 5\n[policy]\nnetworks = ["none"]\n')
    assert load(file, {}) == Config.model_validate({"reap_interval": 5, "policy": {"networks": ["none"]}})
    file.write_text("a = ")
    with pytest.raises(InvalidSpec, match="cannot be read"):
        load(file, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("socket_pth: /x", "socket_pth: Extra inputs are not permitted"),
        ("policy: {networks: [moon]}", r"policy.networks.0: Input should be 'none', 'host' or 'pod'"),
        ("reap_interval: soon", "reap_interval"),
        ("containerd: {subnet: here}", "here"),
        ("registry_credentials: {a: {password: x}}", r"registry_credentials.a.password"),
        (
            "registry_credentials: {a: {username: x}}",
            "give one of password_file, identity_token_file, helper, docker",
        ),
        ("registry_credentials: {a: {helper: ecr-login}}", "give `registry`, the host that they are for"),
        ("registry_credentials: {a: {docker_config: /c, registry: r.io}}", "unless it is a docker_config"),
        ("image_rights: {verify: some}", r"image_rights\.verify"),
        ("path_map: {/a: '/b/${AIRCELL_TEST_UNSET}'}", "AIRCELL_TEST_UNSET is not set"),
        ("state_dir: /" + "x" * 80, "longer than a unix socket's path may be"),
        ("- a list", "holds no mapping"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(InvalidSpec, match=said) as caught:
        load(file, {})
    assert str(file) in str(caught.value)


def test_the_managed_containerd_lives_below_the_folders_of_aircelld() -> None:
    settings = Config(state_dir="/s", run_dir="/r", containerd={"bridge": "b0"}).containerd_config()
    assert (settings.root, settings.state, settings.bridge) == ("/s/containerd", "/r/containerd", "b0")


def test_two_state_folders_are_two_nodes() -> None:
    assert Config(state_dir="/a").node_id() == Config(state_dir="/a").node_id() != Config(state_dir="/b").node_id()


def test_paths_of_workers_become_paths_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRCELL_TEST_POD", "uid-1")
    path_map = Config(path_map={"/opt/dags": "/pods/${AIRCELL_TEST_POD}/dags", "/opt": "/o"}).path_map
    mapped = {path: map_path(path, path_map) for path in ("/opt/dags", "/opt/dags/a/b", "/opt/x", "/optional", "/")}
    assert mapped == {
        "/opt/dags": "/pods/uid-1/dags",
        "/opt/dags/a/b": "/pods/uid-1/dags/a/b",
        "/opt/x": "/o/x",
        "/optional": "/optional",
        "/": "/",
    }


def test_sources_are_resolved_before_anybody_compares_them(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (mount,) = on_node([Mount(source="/w/link", target="/x")], {"/w": str(tmp_path)})
    assert mount == Mount(source=str(tmp_path / "real"), target="/x")
    with pytest.raises(InvalidSpec, match=r"/w/gone does not exist on this node \(it is .*/gone here\)"):
        on_node([Mount(source="/w/gone", target="/x")], {"/w": str(tmp_path)})
