"""The same DAGs on stock Airflow and in sandboxes: states, XComs, tries and log lines are the same."""

from __future__ import annotations

import pytest

from tests.support.outcomes import PARITY, Outcomes

pytestmark = pytest.mark.timeout(1500)  # the first test waits for all runs


@pytest.mark.parametrize("dag_id", PARITY)
def test_states_tries_and_xcoms(stock: Outcomes, sandboxed: Outcomes, dag_id: str) -> None:
    expected = {name: (each.state, each.tries, each.xcoms) for name, each in stock[dag_id].items()}
    assert {name: (each.state, each.tries, each.xcoms) for name, each in sandboxed[dag_id].items()} == expected


@pytest.mark.parametrize("dag_id", PARITY)
def test_log_lines(stock: Outcomes, sandboxed: Outcomes, dag_id: str) -> None:
    for name, each in stock[dag_id].items():
        assert sandboxed[dag_id][name].logs == each.logs, name
