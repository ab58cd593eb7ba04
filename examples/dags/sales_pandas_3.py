"""Turnover per product with pandas 3: ``pd.col`` does not exist in pandas 2, which sales_pandas_2.py needs.

The image that brings pandas 3 is named in sales_pandas_3.yaml.
"""

from __future__ import annotations

import pandas as pd
from airflow.sdk import dag, task

ORDERS = [
    {"product": "tea", "price": 4, "units": 30},
    {"product": "coffee", "price": 7, "units": 12},
    {"product": "tea", "price": 5, "units": 10},
]


@dag(schedule=None, catchup=False, tags=["aircell", "pandas 3"])
def sales_pandas_3():
    @task
    def extract() -> list[dict[str, str | int]]:
        print(f"pandas {pd.__version__}")
        return ORDERS

    @task
    def per_product(orders: list[dict[str, str | int]]) -> dict[str, int]:
        frame = pd.DataFrame(orders).assign(turnover=pd.col("price") * pd.col("units"))
        return {str(product): int(sum_) for product, sum_ in frame.groupby("product")["turnover"].sum().items()}

    @task
    def report(products: dict[str, int]) -> None:
        for product, turnover in products.items():
            print(f"{product}: {turnover}")

    report(per_product(extract()))


sales_pandas_3()
