"""airflow.cfg to Settings, the hooks, and what of Airflow's own configuration goes into a sandbox."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from airflow import __file__ as airflow_init
from airflow import __version__ as airflow_version
from airflow.configuration import conf

from aircell.client import DEFAULT_SOCKET
from aircell.errors import InvalidSpec
from aircell.spec import Mount, SandboxSpec
from aircell_airflow import plan, provider_info, settings
from aircell_airflow.child_environment import PASSED
from aircell_airflow.provider_info import SPEC_OPTIONS, Option
from aircell_airflow.resolve import Said, dotted_values

OWN_SECTIONS = (provider_info.MAIN, provider_info.TASK, provider_info.PARSE, provider_info.ENVIRONMENT)
WORKER_IMAGE = f"apache/airflow:{airflow_version}-python{sys.version_info.major}.{sys.version_info.minor}"

Write = Callable[[str, str, str], None]


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes an option of airflow.cfg; nothing of ours is written before."""
    for variable in list(os.environ):
        if variable.startswith(tuple(f"AIRFLOW__{section.upper()}__" for section in OWN_SECTIONS)):
            monkeypatch.delenv(variable)
    for section in OWN_SECTIONS:
        conf.remove_section(section)
    yield lambda section, name, value: conf.read_string(f"[{section}]\n{name} = {value}\n")
    for section in OWN_SECTIONS:
        conf.remove_section(section)


def test_settings_of_an_untouched_airflow(write: Write) -> None:
    where = "default of [sandbox_runtime] "
    assert settings.load("task") == settings.Settings(
        kind="task",
        runtime="process",
        runtime_source=where + "task_execution_runtime",
        socket_path=DEFAULT_SOCKET,
        autostart=None,
        fields={
            ("image",): Said(WORKER_IMAGE, "default: the worker's own version"),
            ("labels", "app"): Said("airflow_task", "default of [task_execution_sandbox_runtime] app"),
            ("pull_policy",): Said("missing", where + "pull_policy"),
            ("python",): Said("python3", where + "python"),
            ("user",): Said("50000", where + "run_as_user"),
            ("group",): Said("0", where + "run_as_group"),
            ("network",): Said("pod", where + "network"),
            ("resources", "memory"): Said("2Gi", where + "memory"),
            ("resources", "pids"): Said("512", where + "pids"),
            ("security", "profile"): Said("restricted", where + "security_profile"),
            ("parse_isolation",): Said("file", where + "parse_isolation"),
            ("security", "seccomp"): Said("runtime-default", where + "seccomp"),
            ("security", "read_only_root"): Said(True, where + "read_only_root"),
            ("startup_timeout",): Said("60", where + "startup_timeout"),
            ("stop_grace",): Said("10", where + "stop_grace"),
        },
    )


def test_defaults_agree_with_those_of_the_spec_but_for_the_network(write: Write, tmp_path: Path) -> None:
    spec = resolved(tmp_path).spec
    ours, plain = dotted_values(spec), dotted_values(SandboxSpec(image=WORKER_IMAGE))
    assert {name: value for name, value in ours.items() if plain.get(name) != value} == {
        "network": "pod",
        "labels.app": "airflow_task",
    }


@pytest.mark.parametrize("option", [option for option in SPEC_OPTIONS if option.field], ids=lambda option: option.name)
@pytest.mark.parametrize("section", [provider_info.MAIN, provider_info.TASK])
def test_every_option_sets_its_field_and_is_named_as_its_source(
    write: Write, tmp_path: Path, section: str, option: Option
) -> None:
    assert option.example is not None
    assert option.example != option.default
    write(section, option.name, option.example)
    found = resolved(tmp_path)
    before = dotted_values(SandboxSpec(image=WORKER_IMAGE, network="pod", labels={"app": "airflow_dag_parsing"}))
    assert dotted_values(found.spec)[option.field] != before[option.field]
    assert found.sources[option.field] == f"[{section}] {option.name}"


def test_the_overriding_section_holds_for_its_kind_only(write: Write, tmp_path: Path) -> None:
    write("sandbox_runtime", "memory", "1Gi")
    write("sandbox_runtime", "cpus", "1")
    write("dag_parsing_sandbox_runtime", "memory", "256Mi")
    write("sandbox_runtime", "task_execution_runtime", "cri")
    task, parse = resolved(tmp_path), resolved(tmp_path, kind="parse")
    assert (task.spec.resources.memory, task.spec.resources.cpus, task.backend) == (2**30, 1.0, "cri")
    assert (parse.spec.resources.memory, parse.spec.resources.cpus, parse.backend) == (2**28, 1.0, "process")
    assert task.sources["backend"] == "[sandbox_runtime] task_execution_runtime"
    assert (task.spec.labels, parse.spec.labels) == ({"app": "airflow_task"}, {"app": "airflow_dag_parsing"})


def test_the_environment_wins_over_the_file_as_everywhere_in_airflow(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("sandbox_runtime", "image", "file:1")
    monkeypatch.setenv("AIRFLOW__SANDBOX_RUNTIME__IMAGE", "environment:1")
    found = resolved(tmp_path)
    assert found.spec.image == "environment:1"
    assert found.sources["image"] == "[sandbox_runtime] image (from AIRFLOW__SANDBOX_RUNTIME__IMAGE)"


def test_an_empty_option_is_an_unset_one(write: Write, tmp_path: Path) -> None:
    write("sandbox_runtime", "memory", "1Gi")
    write("task_execution_sandbox_runtime", "memory", "")
    assert resolved(tmp_path).spec.resources.memory == 2**30


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("sandbox_runtime", "imagee", "x", "[sandbox_runtime] imagee: unknown option. Options of this section: app"),
        ("sandbox_runtime", "Image", "x", "[sandbox_runtime] Image: unknown option."),
        (
            "task_execution_sandbox_runtime",
            "socket_path",
            "/x",
            "[task_execution_sandbox_runtime] socket_path: unknown",
        ),
        ("sandbox_runtime", "memory", "lots", "[sandbox_runtime] memory: resources.memory: 'lots' is not a size"),
        ("sandbox_runtime", "pids", "many", "[sandbox_runtime] pids: resources.pids: Input should be a valid integer"),
        ("sandbox_runtime", "cpus", "-1", "[sandbox_runtime] cpus: resources.cpus: Input should be greater than 0"),
        ("sandbox_runtime", "autostart", "maybe", "[sandbox_runtime] autostart: 'maybe' is neither True nor False"),
        ("sandbox_runtime", "read_only_root", "2", "[sandbox_runtime] read_only_root: '2' is neither True nor False"),
        ("sandbox_runtime", "image", "%(x)s", "[sandbox_runtime] image: Bad value substitution"),
        ("sandbox_environment", "a b", "x", "[sandbox_environment] a b: env: 'A B' is not the name"),
        ("sandbox_runtime", "volume_mount_yaml", "/nowhere", "[sandbox_runtime] volume_mount_yaml: there is no file"),
        ("sandbox_runtime", "task_execution_runtime", "", "[sandbox_runtime] task_execution_runtime: is empty"),
    ],
)
def test_a_wrong_option_is_refused_with_section_and_key(
    write: Write, section: str, name: str, value: str, message: str
) -> None:
    write(section, name, value)
    with pytest.raises(InvalidSpec) as caught:
        settings.load("task")
    assert str(caught.value).startswith(message)


def test_an_unknown_option_in_the_environment_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__SANDBOX_RUNTIME__IMAGE_CMD", "echo x")
    with pytest.raises(
        InvalidSpec, match=r"\[sandbox_runtime\] image_cmd \(from AIRFLOW__SANDBOX_RUNTIME__IMAGE_CMD\)"
    ):
        settings.load("task")


def test_autostart_is_a_command_for_root_and_nothing_for_others(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("sandbox_runtime", "autostart", "True")
    write("sandbox_runtime", "socket_path", "/s/a.sock")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    options = ("--managed-containerd", "--socket", "/s/a.sock", "--idle-exit", "600")
    command = (sys.executable, "-m", "aircell.daemon.main", *options)
    assert settings.load("task").autostart == command
    understood = subprocess.run([*command, "--version"], capture_output=True, check=True)
    assert understood.stdout.startswith(b"aircelld ")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert settings.load("task").autostart is None


def test_environment_pairs_have_their_keys_upper_cased(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("sandbox_environment", "team_name", "data")
    write("sandbox_environment", "Ratio", "1.10")
    write("sandbox_environment", "EMPTY", "")
    monkeypatch.setenv("AIRFLOW__SANDBOX_ENVIRONMENT__FLAG", "true")
    found = resolved(tmp_path)
    assert found.spec.env == {"TEAM_NAME": "data", "RATIO": "1.10", "EMPTY": "", "FLAG": "true"}
    assert found.sources["env.RATIO"] == "[sandbox_environment] Ratio"


def test_volume_mount_yaml_is_a_list_of_mounts(write: Write, tmp_path: Path) -> None:
    file = tmp_path / "volumes.yaml"
    file.write_text("- /etc/ssl:/etc/ssl\n- {source: /data, target: /mnt, read_only: false}\n")
    write("sandbox_runtime", "volume_mount_yaml", str(file))
    found = resolved(tmp_path)
    assert found.spec.mounts == (
        Mount(source="/etc/ssl", target="/etc/ssl"),
        Mount(source="/data", target="/mnt", read_only=False),
    )
    assert found.sources["mounts./mnt"] == f"{file}:2"
    file.write_text("- /etc/ssl\n")
    with pytest.raises(InvalidSpec, match=rf"^{file}:1: volumes\[0\]: '/etc/ssl' is not a mount"):
        settings.load("task")


def test_precedence_from_the_built_in_default_to_the_last_hook(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six fields, each set by every layer up to the one that must win."""
    fields = ["network", "python", "user", "cgroup_parent", "runtime_handler", "registry_credentials"]
    cfg_names = {"user": "run_as_user"}
    for field in fields[1:]:
        write("sandbox_runtime", cfg_names.get(field, field), "main")
    for field in fields[2:]:
        write("task_execution_sandbox_runtime", cfg_names.get(field, field), "task")
    (tmp_path / "dag.yaml").write_text("sandbox: {" + ", ".join(f"{field}: yaml" for field in fields[3:]) + "}")
    in_config = {"sandbox": dict.fromkeys(fields[4:], "executor_config")}

    def mutate(spec: SandboxSpec, context: Mapping[str, Any]) -> SandboxSpec:
        return spec.model_copy(update={"registry_credentials": "hook"})

    install_hooks(monkeypatch, sandbox_mutation_hook=mutate)
    found = resolved(tmp_path, executor_config=in_config)
    assert {field: (getattr(found.spec, field), found.sources[field]) for field in fields} == {
        "network": ("pod", "default of [sandbox_runtime] network"),
        "python": ("main", "[sandbox_runtime] python"),
        "user": ("task", "[task_execution_sandbox_runtime] run_as_user"),
        "cgroup_parent": ("yaml", f"{tmp_path}/dag.yaml:1"),
        "runtime_handler": ("executor_config", "executor_config['sandbox'] of the task: runtime_handler"),
        "registry_credentials": ("hook", "airflow_local_settings.sandbox_mutation_hook"),
    }


def test_the_image_hook_sees_what_is_known_and_decides(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, Mapping[str, Any]]] = []

    def choose(image: str, context: Mapping[str, Any]) -> str:
        seen.append((image, context))
        return f"mirror/{image}"

    install_hooks(monkeypatch, get_sandbox_image=choose)
    found = resolved(tmp_path, context={"dag_id": "d"})
    expected = {"dag_id": "d", "kind": "task", "file": f"{tmp_path}/dag.py", "bundle_root": str(tmp_path)}
    assert seen == [(WORKER_IMAGE, expected)]
    assert found.spec.image == f"mirror/{WORKER_IMAGE}"
    assert found.sources["image"] == "airflow_local_settings.get_sandbox_image"


@pytest.mark.parametrize(
    ("hook", "result", "message"),
    [
        ("get_sandbox_image", None, "get_sandbox_image in airflow_local_settings returned None and not an image"),
        ("get_sandbox_image", ZeroDivisionError("oh"), "get_sandbox_image in airflow_local_settings failed: ZeroDiv"),
        ("sandbox_mutation_hook", None, "sandbox_mutation_hook in airflow_local_settings returned None and not a"),
        ("sandbox_mutation_hook", OSError("oh"), "sandbox_mutation_hook in airflow_local_settings failed: OSError: oh"),
        (
            "sandbox_mutation_hook",
            SandboxSpec(image="x").model_copy(update={"network": "all"}),
            "sandbox_mutation_hook in airflow_local_settings made an invalid spec: ",
        ),
    ],
)
def test_a_hook_that_fails_is_named(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: str, result: Any, message: str
) -> None:
    def bad(*args: Any) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    install_hooks(monkeypatch, **{hook: bad})
    with pytest.raises(InvalidSpec) as caught:
        resolved(tmp_path)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("config", ["text", ["image"], 5])
def test_executor_config_of_another_shape_is_refused(write: Write, tmp_path: Path, config: Any) -> None:
    with pytest.raises(InvalidSpec, match=r"^executor_config: sandbox: must be a mapping"):
        resolved(tmp_path, executor_config={"sandbox": config})


def test_provider_info_fits_airflows_schema() -> None:
    schema = json.loads((Path(airflow_init).parent / "provider_info.schema.json").read_text())
    jsonschema.validate(provider_info.get_provider_info(), schema)


def test_the_child_environment_has_the_workers_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__DAGS_FOLDER", "/elsewhere/dags")
    monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_QUEUE", "slow")
    child = settings.child_environment("my-bundle", "/mnt/bundle")
    assert child["AIRFLOW__CORE__DAGS_FOLDER"] == "/elsewhere/dags"
    assert child["AIRFLOW__OPERATORS__DEFAULT_QUEUE"] == "slow"
    assert child["AIRFLOW__SCHEDULER__CATCHUP_BY_DEFAULT"] == conf.get("scheduler", "catchup_by_default")
    assert child["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == "sqlite://"
    assert (child["HOME"], child["AIRFLOW_HOME"]) == ("/tmp", "/tmp/.airflow")
    assert json.loads(child["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"]) == [
        {
            "name": "my-bundle",
            "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
            "kwargs": {"path": "/mnt/bundle"},
        }
    ]


def test_every_passed_option_exists_in_this_airflow() -> None:
    known = {(section, name) for section, about in conf.configuration_description.items() for name in about["options"]}
    assert {(section, name) for section, names in PASSED.items() for name in names} <= known


def test_no_secret_is_passed_whatever_way_it_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    canary = "c4n4ry"
    sensitive = conf.sensitive_config_values
    assert ("core", "fernet_key") in sensitive
    for section, about in conf.configuration_description.items():
        for name in about["options"]:
            variable = f"AIRFLOW__{section}__{name}".upper()
            if (section, name) in sensitive or name not in PASSED.get(section, ()):
                monkeypatch.setenv(variable, canary)
            monkeypatch.setenv(f"{variable}_CMD", f"echo {canary}")
            monkeypatch.setenv(f"{variable}_SECRET", canary)
    for name in ("AIRFLOW_CONN_DB", "AIRFLOW_VAR_TOKEN", "AWS_SECRET_ACCESS_KEY", "AIRFLOW__CUSTOM__PASSWORD"):
        monkeypatch.setenv(name, canary)
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", f"https://admin:{canary}@host/")
    child = settings.child_environment("bundle", "/bundle")
    assert [name for name, value in child.items() if canary in value] == []


def test_an_option_that_becomes_sensitive_is_not_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        conf.__dict__, "sensitive_config_values", conf.sensitive_config_values | {("operators", "default_owner")}
    )
    assert "AIRFLOW__OPERATORS__DEFAULT_OWNER" not in settings.child_environment("bundle", "/bundle")


def resolved(bundle: Path, **options: Any) -> plan.Resolved:
    return plan.plan(
        options.pop("kind", "task"),
        file=bundle / "dag.py",
        bundle_root=bundle,
        context=options.pop("context", {}),
        **options,
    )


def install_hooks(monkeypatch: pytest.MonkeyPatch, **hooks: Callable[..., Any]) -> None:
    module = types.ModuleType("airflow_local_settings")
    for name, function in hooks.items():
        setattr(module, name, function)
    monkeypatch.setitem(sys.modules, "airflow_local_settings", module)
