"""Sales per month with pandas 2. ``resample("M")`` is an error in pandas 3, which sales_pandas_3.py needs.

The image that brings pandas 2 is named in sales_pandas_2.yaml. Neither file can be imported outside its image.
"""

from __future__ import annotations

from datetime import timedelta

import pandas as pd
from airflow.sdk import dag, get_current_context, task

SALES = {"2026-01-05": 120, "2026-01-19": 80, "2026-02-02": 200, "2026-03-30": 50}


@dag(schedule=None, catchup=False, tags=["aircell", "pandas 2"])
def sales_pandas_2():
    @task
    def extract() -> dict[str, int]:
        print(f"pandas {pd.__version__}")
        return SALES

    @task(retries=1, retry_delay=timedelta(seconds=1))
    def per_month(sales: dict[str, int]) -> dict[str, int]:
        if get_current_context()["ti"].try_number == 1:
            raise ConnectionError("the first attempt fails on purpose, to show a retry")
        series = pd.Series(sales.values(), index=pd.to_datetime(list(sales)))
        return {str(month.date()): int(total) for month, total in series.resample("M").sum().items()}

    @task
    def report(months: dict[str, int]) -> None:
        for month, total in months.items():
            print(f"{month}: {total}")

    report(per_month(extract()))


sales_pandas_2()
