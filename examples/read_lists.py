"""Read a day's lists: `python examples/read_lists.py workspace/recommendations 2026-03-03 [USER]`.

The table is Delta, partitioned by ds, a row a listener, and one row without user_id for everybody else. Any Delta
reader does; here delta-rs finds the day's files and DuckDB queries them. docs/output.md has Polars, pandas and Spark.
"""

import sys

import duckdb
from deltalake import DeltaTable

QUERY = """
    select user_id, source, unnest(items).item_id as song, unnest(items).score as score
    from lists where cast(user_id as varchar) is not distinct from $user
"""


def main(table: str, ds: str, user: str | None = None) -> list[tuple[object, str, object, float]]:
    files = DeltaTable(table).file_uris(partition_filters=[("ds", "=", ds)])
    connection = duckdb.connect()
    connection.read_parquet(files).create_view("lists")
    rows = connection.execute(QUERY, {"user": user}).fetchall()
    for rank, (_, source, song, score) in enumerate(rows, start=1):
        print(f"{rank:3d}  {song}  {score:.3f}  by {source}")
    return rows


if __name__ == "__main__":
    main(*sys.argv[1:4])
