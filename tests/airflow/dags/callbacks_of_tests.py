"""What executor callbacks call."""

from __future__ import annotations

import platform


def notify(text, context=None):
    from airflow.sdk import Variable

    print(text, "on", platform.node(), "with", Variable.get("from_environment"))


def fails(context=None):
    raise ValueError("a callback that fails")
