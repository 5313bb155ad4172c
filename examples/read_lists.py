"""Read a day's lists: `python examples/read_lists.py workspace/recommendations 2026-03-03 [USER]`.

The table is Delta, partitioned by ds; any Delta reader does. Here delta-rs finds the day's files and DuckDB reads them.
"""

import sys

import duckdb
from deltalake import DeltaTable


def main(table: str, ds: str, user: str | None = None) -> list[tuple[object, ...]]:
    lists = DeltaTable(table).to_pyarrow_dataset().to_table(filter=[("ds", "=", ds)])  # noqa: F841, DuckDB finds it
    query = """
        select user_id, source, unnest(range(1, len(items) + 1)) as rank, unnest(items).item_id as item_id
        from lists where cast(user_id as text) = $user or ($user is null and user_id is null) order by rank
    """
    rows = duckdb.execute(query, {"user": user}).fetchall()
    for user_id, source, rank, item_id in rows:
        print(f"{user_id or 'everybody else'}  {source:8s}  {rank:2d}  {item_id}")
    return rows


if __name__ == "__main__":
    main(*sys.argv[1:4])
