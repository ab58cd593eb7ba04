"""The environment of Airflow in a sandbox: the worker's value of every option that a DAG may read, and no secret.

An allow-list, because whoever writes a DAG can read all of it: an option that is not named here is the image's own
default inside. Sensitive options, ``*_cmd`` and ``*_secret`` are never passed, whatever the list says, and neither
is a value with a password in a URL.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from airflow.configuration import conf

PASSED: dict[str, tuple[str, ...]] = {
    "core": (
        "dags_folder",  # part of the hash of a DAG: another value would make new DAG versions
        "default_timezone",
        "executor",  # the names that a task's `executor=` may have
        "max_active_tasks_per_dag",
        "max_active_runs_per_dag",
        "max_consecutive_failed_dag_runs_per_dag",
        "dags_are_paused_at_creation",
        "dagbag_import_timeout",
        "dagbag_import_error_tracebacks",
        "dagbag_import_error_traceback_depth",
        "allowed_deserialization_classes",
        "allowed_deserialization_classes_regexp",
        "dag_run_conf_overrides_params",
        "dag_discovery_safe_mode",
        "dag_ignore_file_syntax",
        "might_contain_dag_callable",
        "default_task_retries",
        "default_task_retry_delay",
        "max_task_retry_delay",
        "default_task_weight_rule",
        "task_success_overtime",
        "killed_task_cleanup_time",
        "default_task_execution_timeout",
        "default_impersonation",
        "compress_serialized_dags",
        "num_dag_runs_to_retain_rendered_fields",
        "max_templated_field_length",
        "xcom_backend",
        "hide_sensitive_var_conn_fields",
        "sensitive_var_conn_names",
        "default_pool_task_slot_count",
        "max_map_length",
        "allow_double_dot_in_ids",
        "multi_team",
        "rerun_with_latest_version",
    ),
    "logging": (
        "logging_level",
        "namespace_levels",
        "callsite_parameters",
        "extra_logger_names",
        "task_log_prefix_template",
        "log_timestamp_format",
        "secret_mask_adapter",
        "min_length_masked_secret",
        "color_log_error_keywords",
        "color_log_warning_keywords",
    ),
    "operators": (
        "default_owner",
        "default_deferrable",
        "default_cpus",
        "default_ram",
        "default_disk",
        "default_gpus",
        "default_queue",
    ),
    "scheduler": (
        "catchup_by_default",
        "ignore_first_depends_on_past_by_default",
        "allowed_run_id_pattern",
        "create_cron_data_intervals",
        "create_delta_data_intervals",
    ),
    "sensors": ("default_timeout",),
    "email": ("email_backend", "email_conn_id", "default_email_on_retry", "default_email_on_failure", "from_email"),
    "lineage": ("max_assets_per_collector", "max_extras_per_collector"),
    "state_store": ("clear_on_success", "default_retention_days", "max_value_storage_bytes"),
    "triggerer": ("queues_enabled",),
    "dag_processor": ("dag_version_inflation_check_level", "disable_bundle_versioning"),
    "callbacks": ("callback_execution_timeout",),
    "workers": ("missing_dag_retries", "missing_dag_retry_delay", "state_store_backend"),
    "api": ("base_url",),  # `ti.log_url` is made of it
    "standard": ("venv_install_method",),
}
_CREDENTIALS_IN_URL = re.compile(r"://[^/\s]*@")
_HOME = "/tmp"  # noqa: S108 - the sandbox's own scratch space


def child_environment(bundle_name: str, bundle_path: str) -> dict[str, str]:
    """The variables for a sandbox in which the bundle is mounted at ``bundle_path``."""
    bundle = {
        "name": bundle_name,
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": bundle_path},
    }
    passed = {f"AIRFLOW__{section}__{name}".upper(): value for section, name, value in _passed()}
    return passed | {
        "HOME": _HOME,
        "AIRFLOW_HOME": f"{_HOME}/.airflow",  # not /tmp/airflow: there versioned bundles are, and so may be mounted
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH": f"{_HOME}/.airflow/dag_bundles",  # for Airflow's lock files
        # Airflow opens an engine on import; the child is kept from using it by block_orm_access().
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite://",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([bundle]),
    }


def _passed() -> Iterator[tuple[str, str, str]]:
    for section, names in PASSED.items():
        for name in names:
            if conf.is_sensitive_option(section, name):
                continue
            value = conf.get(section, name, fallback=None)
            if value is not None and not _CREDENTIALS_IN_URL.search(value):
                yield section, name, value
