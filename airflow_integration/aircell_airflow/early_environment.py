"""Which variables must be there when a sandbox starts, and which it can get with its job.

The fewer must be there, the more DAG files can be served by the same warm sandbox.
"""

from __future__ import annotations

from aircell.spec import SandboxSpec

_PREFIXES = (
    *("AIRFLOW", "_AIRFLOW", "PYTHON", "LD_", "GLIBC_", "GCONV_", "MALLOC_", "LC_"),
    *("OPENSSL_", "SSL_", "OTEL_", "SENTRY_", "SQLALCHEMY_", "PYDANTIC_", "OMP_", "MKL_", "OPENBLAS_"),
)
_NAMES = frozenset({"PATH", "HOME", "TMPDIR", "LANG", "LANGUAGE", "LOCPATH", "TZ", "TZDIR", "NO_COLOR", "FORCE_COLOR"})


def split(spec: SandboxSpec) -> tuple[dict[str, str], dict[str, str]]:
    """The variables of ``spec`` in two: those that must be there when it starts, and the others.

    The C library, the interpreter, Airflow and what it imports read theirs when they start. A module of ``preload`` may
    read any, so with one all of them must be there.
    """
    early = {name: value for name, value in spec.env.items() if spec.preload or is_early(name)}
    return early, {name: value for name, value in spec.env.items() if name not in early}


def is_early(name: str) -> bool:
    """Whether something that a sandbox imports before its job may read the variable on import."""
    return name in _NAMES or name.startswith(_PREFIXES)
