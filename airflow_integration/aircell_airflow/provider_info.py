"""What Airflow's provider manager asks for, and the one list of our options. Imports nothing of ours.

``settings.py`` reads airflow.cfg by the same list, so that what ``airflow config list`` shows is what is read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

VERSION = "0.1.0"
MAIN = "sandbox_runtime"
TASK = "task_execution_sandbox_runtime"
PARSE = "dag_parsing_sandbox_runtime"
ENVIRONMENT = "sandbox_environment"


class Option(NamedTuple):
    """One option of airflow.cfg."""

    name: str
    type: str
    """Airflow's word: string, boolean, integer or float."""
    default: str | None
    example: str | None
    description: str
    field: str = ""
    """The SandboxSpec field that it sets, dotted; empty for an option of the integration itself."""


NODE_OPTIONS = (
    Option(
        "task_execution_runtime", "string", "process", "cri",
        "Where tasks run: `process` is stock Airflow; `cri`, or the name of another backend that aircelld has, runs "
        "each task in its own sandbox.",
    ),
    Option(
        "dag_parsing_runtime", "string", "process", "cri",
        "Where DAG files are parsed, with the same values as `task_execution_runtime`.",
    ),
    Option(
        "socket_path", "string", "/run/aircelld/aircelld.sock", "/run/aircelld/aircelld.sock",
        "The unix socket of aircelld. The container engine's own socket is in aircelld's configuration, never here.",
    ),
    Option(
        "autostart", "boolean", "False", "True",
        "Start an aircelld with a private containerd when none answers at `socket_path`. Works as root only; "
        "meant for one machine, not for a cluster.",
    ),
)  # fmt: skip
"""Only in ``[sandbox_runtime]``."""

SPEC_OPTIONS = (
    Option(
        "image", "string", None, "registry.example/team/airflow:3.3.2",
        "The image for DAG files that name none. Unset: `apache/airflow` of the worker's own Airflow and Python.",
        "image",
    ),
    Option(
        "pull_policy", "string", "missing", "always",
        "When to pull the image: `always`, `missing` or `never`.", "pull_policy",
    ),
    Option(
        "registry_credentials", "string", None, "team-registry",
        "Name of registry credentials that aircelld's configuration holds; never the credentials themselves.",
        "registry_credentials",
    ),
    Option(
        "python", "string", "python3", "/opt/venv/bin/python",
        "The interpreter in the image: a name on its PATH or an absolute path.", "python",
    ),
    Option(
        "preload", "string", None, "pandas,numpy",
        "Comma-separated modules that a sandbox imports before it knows its task. `auto` stands for those that DAG "
        "files turn out to be slow to import.", "preload",
    ),
    Option(
        "run_as_user", "string", "50000", "airflow",
        "User in the sandbox: a number, or a name that the image knows.", "user",
    ),
    Option(
        "run_as_group", "integer", "0", "50000",
        "Primary group in the sandbox.", "group",
    ),
    Option(
        "network", "string", "pod", "none",
        "`pod`: a network namespace of its own with the engine's network; `none`: loopback only; `host`: the node's.",
        "network",
    ),
    Option(
        "cpus", "float", None, "1.5",
        "Limit of CPU time, in cores. Unset: no limit.", "resources.cpus",
    ),
    Option(
        "memory", "string", "2Gi", "512Mi",
        "Limit of memory.", "resources.memory",
    ),
    Option(
        "pids", "integer", "512", "1024",
        "Limit of processes and threads.", "resources.pids",
    ),
    Option(
        "shm", "string", None, "64Mi",
        "Size of /dev/shm. Unset: the engine's default.", "resources.shm",
    ),
    Option(
        "scratch", "string", None, "1Gi",
        "Limit of what may be written below /tmp; bounded scratch is memory and counts towards `memory`. "
        "Unset: bounded by the node's disk only.", "resources.scratch",
    ),
    Option(
        "volume_mount_yaml", "string", None, "/etc/airflow/volumes.yaml",
        "A YAML file with a list of mounts, as `volumes` of the metadata YAML has them.",
    ),
    Option(
        "cgroup_parent", "string", None, "/aircell/etl",
        "The cgroup below which sandboxes are made. Unset: aircelld's choice.", "cgroup_parent",
    ),
    Option(
        "runtime_handler", "string", None, "runsc",
        "The low-level runtime by the engine's own name for it (runc, crun, runsc, kata). Unset: the engine's default.",
        "runtime_handler",
    ),
    Option(
        "security_profile", "string", "restricted", "baseline",
        "`restricted` drops every capability; `baseline` keeps the engine's default set.", "security.profile",
    ),
    Option(
        "seccomp", "string", "runtime-default", "localhost/profiles/airflow.json",
        "`runtime-default`, `localhost/FILE` on the node, or `unconfined`.", "security.seccomp",
    ),
    Option(
        "apparmor", "string", None, "localhost/airflow",
        "`runtime-default`, `localhost/PROFILE` on the node, or `unconfined`. Unset: the engine's default.",
        "security.apparmor",
    ),
    Option(
        "read_only_root", "boolean", "True", "False",
        "Whether the image's own files are read-only; /tmp is always writable.", "security.read_only_root",
    ),
    Option(
        "parse_isolation", "string", "file", "image",
        "`file`: each DAG file is parsed in a sandbox of its own; `image`: in a process of its own, in a sandbox that "
        "parses all files of one image and bundle. Without effect on tasks.", "parse_isolation",
    ),
    Option(
        "app", "string", None, "airflow_task",
        "Value of the label `app`. Unset: `airflow_task` for tasks and `airflow_dag_parsing` for parsing.",
        "labels.app",
    ),
    Option(
        "startup_timeout", "float", "60", "120",
        "Seconds from an image on the node to a runner that is ready; pulling does not count.", "startup_timeout",
    ),
    Option(
        "stop_grace", "float", "10", "30",
        "Seconds between SIGTERM and SIGKILL.", "stop_grace",
    ),
)  # fmt: skip
"""In ``[sandbox_runtime]``, and in either overriding section, where unset means that the former holds."""


def _options(options: tuple[Option, ...], *, overriding: bool = False) -> dict[str, Any]:
    return {
        option.name: {
            "description": f"{option.description}\n",
            "version_added": VERSION,
            "type": option.type,
            "example": option.example,
            "default": None if overriding else option.default,
        }
        for option in options
    }


def get_provider_info() -> dict[str, Any]:
    """Provider metadata; see Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "aircell",
        "name": "Aircell",
        "description": "Runs tasks and parses DAG files in sandboxes of their own.",
        "versions": [VERSION],
        "config": {
            MAIN: {
                "description": "Sandboxes for tasks and for the parsing of DAG files.\n",
                "options": _options(NODE_OPTIONS + SPEC_OPTIONS),
            },
            TASK: {
                "description": f"Overrides [{MAIN}] for tasks.\n",
                "options": _options(SPEC_OPTIONS, overriding=True),
            },
            PARSE: {
                "description": f"Overrides [{MAIN}] for the parsing of DAG files.\n",
                "options": _options(SPEC_OPTIONS, overriding=True),
            },
            ENVIRONMENT: {
                "description": (
                    "Environment variables of every sandbox: `key = value`, keys are upper-cased. "
                    "Whoever writes a DAG can read them.\n"
                ),
                "options": {},
            },
        },
        "cli": ["aircell_airflow.provider_info.get_cli_commands"],
    }


def get_cli_commands() -> list[Any]:
    """The commands ``airflow sandbox ...``, for Airflow's command line."""
    from airflow.cli import cli_config

    backend = cli_config.Arg(  # type: ignore[no-untyped-call]
        ("--backend",), help="cri, or another backend that aircelld has; the configured one if not given"
    )
    test = cli_config.ActionCommand(
        name="test",
        help="Run one task in its sandbox, whatever it depends on",
        func=cli_config.lazy_load_command("aircell_airflow.sandbox_command.test"),
        args=(
            cli_config.ARG_DAG_ID,
            cli_config.ARG_TASK_ID,
            cli_config.ARG_LOGICAL_DATE_OR_RUN_ID_OPTIONAL,
            cli_config.ARG_MAP_INDEX,
            backend,
            cli_config.ARG_VERBOSE,
        ),
    )
    file = cli_config.Arg(("file",), help="The DAG file")  # type: ignore[no-untyped-call]
    parse = cli_config.ActionCommand(
        name="parse",
        help="Parse one DAG file in its sandbox; show its DAGs and import errors, store nothing",
        func=cli_config.lazy_load_command("aircell_airflow.sandbox_command.parse"),
        args=(file, backend, cli_config.ARG_VERBOSE),
    )
    return [
        cli_config.GroupCommand(
            name="sandbox", help="Run tasks and parse DAG files in sandboxes", subcommands=(test, parse)
        )
    ]
