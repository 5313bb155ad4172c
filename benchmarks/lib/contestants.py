"""Play logs to sequence shards, by our stage, by DuckDB and by Polars: the same work, each as fast as we could make it.

`python -m benchmarks.lib.contestants NAME WORK.json` runs one contestant. It prints a line of JSON: the Unix time and
the processor seconds at which it was ready to begin, and for ours the processor seconds of Spark's tasks.

The work: read all days; drop rows with a null or with a time outside [landing day - 60 days, landing day + 1 day); drop
repeated (listener, time, song); number the songs 1..V by item_id; order each listener's events by (time, song number);
keep the newest 2,000, of the older ones the distinct songs; begin a session after more than 1,800 s; write the
listeners into B Parquet files (zstd level 1) by a hash of user_id, sorted by user_id. Ours writes more: the completion
of every play, a checksum of every file, listeners per song, the inputs it consumed and a transaction for the
vocabulary.

What was tried (industrial logs, `python -m benchmarks.sessionize --events 10 --contestants ...` measures them all):

* `duckdb`: one list aggregate a listener over (time, song) packed into 64 bits, sorted, neighbours compared in the
  list, sessions cut in the list. Buckets are written by two cursors side by side, because one bucket is one scan task.
  COPY with PARTITION_BY costs the same but does not keep the order of rows inside a file.
* `duckdb-windows`: the same with window functions (lag, row_number, running sum) and an ordered list aggregate.
* `polars`: the streaming engine partitions the packed plays by bucket into temporary files; each bucket is grouped,
  its lists sorted and exploded again; sessions are cut on the flat column.
* `polars-sort`: no partitioning; one sort of all plays by (bucket, listener, key).

DuckDB's `SELECT DISTINCT` before the aggregate, `list_distinct` and a physical sort with streaming windows were slower
than comparing neighbours; so was Polars' sort of a bucket's plays compared with sorting its lists.
"""

import datetime as dt
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.lib import industrial_logs, processes
from pipelines.calendar import DAY_SECONDS

MAX_HISTORY = 2000
MAX_LATE_DAYS = 60
SESSION_GAP_S = 1800
ZSTD_LEVEL = 1
"""What pyarrow, which writes our shards, does by default; DuckDB and Polars would take 3."""


@dataclass(frozen=True)
class Work:
    """A contestant's input, output folder and limits."""

    logs: str  # folder with ds=YYYY-MM-DD/*.parquet
    folder: str  # of this run alone: output/, temp/ and, for ours, workspace/
    ds: str  # the day after the newest landing day
    buckets: int
    cores: int
    memory_gb: float

    @property
    def output(self) -> Path:
        """Where the baselines write `bucket-00000.parquet` and `songs.parquet`."""
        return Path(self.folder, "output")

    @property
    def temp(self) -> Path:
        """Where anything may be left that is not output."""
        return Path(self.folder, "temp")

    def bucket_file(self, bucket: int) -> Path:
        """The file of a bucket."""
        return self.output / f"bucket-{bucket:05d}.parquet"


Start = Callable[[Work], Callable[[], object]]
"""Imports an engine and starts it. Returns the function that does the work."""


def ours(work: Work) -> Callable[[], object]:
    """`fuxi sessionize` on local[cores]."""
    return _our_stage(our_settings(work), work.ds)


def _our_stage(settings: list[str], ds: str) -> Callable[[], object]:
    from jobs.config import load_config
    from jobs.day import open_day, run_stage
    from jobs.runtime.engines import spark_session
    from jobs.stages import sessionize

    config = load_config(environment={}, overrides=settings)
    spark_session(config.cluster)
    day = open_day(config, dt.date.fromisoformat(ds))
    return lambda: run_stage(day, "sessionize", sessionize.run)


def ours_on_executors(work: Work) -> Callable[[], object]:
    """`fuxi sessionize` on executors of one core and 2 GB, as many as cores, with JVMs of their own."""
    import pyspark

    home = Path(work.temp, "spark")  # where such executors have their folders
    home.mkdir()
    for name in ("bin", "jars", "python"):
        (home / name).symlink_to(Path(pyspark.__file__).parent / name)
    os.environ["SPARK_HOME"] = str(home)
    return _our_stage([*our_settings(work), f"cluster.spark_master=local-cluster[{work.cores},1,2048]"], work.ds)


def our_settings(work: Work) -> list[str]:
    """Configuration of our stage for a piece of work."""
    return [
        f"workspace={work.folder}/workspace",
        f"logs.path={work.logs}",
        f"logs.max_late_days={MAX_LATE_DAYS}",
        f"sequences.buckets={work.buckets}",
        f"sequences.max_history={MAX_HISTORY}",
        f"sequences.session_gap_s={SESSION_GAP_S}",
        f"cluster.spark_master=local[{work.cores}]",
        f"cluster.spark_options={json.dumps({'spark.local.dir': str(work.temp)})}",
    ]


def duckdb_lists(work: Work) -> Callable[[], object]:
    """DuckDB with list functions."""
    import duckdb

    database = _duckdb(duckdb, work)

    def build() -> None:
        bits = _duckdb_songs(database, work)
        song = f"(x & {2**bits - 1})::INTEGER"
        sorted_lists = f"SELECT user_id, list_sort(list(key)) AS l FROM ({_duckdb_keys(work, bits)}) GROUP BY user_id"
        distinct = f"SELECT user_id, list_filter(l, lambda x, i: i = 1 OR x <> l[i - 1]) AS l FROM ({sorted_lists})"
        heard = f"list_sort(list_distinct(list_transform(l[:-{MAX_HISTORY} - 1], lambda x: {song})))"
        kept = f"""
            SELECT user_id, heard_before, list_transform(l, lambda x: {song}) AS item_index,
                list_transform(l, lambda x: x >> {bits}) AS timestamp
            FROM (SELECT user_id, l[-{MAX_HISTORY}:] AS l,
                CASE WHEN len(l) > {MAX_HISTORY} THEN {heard} ELSE [] END AS heard_before FROM ({distinct}))"""
        starts = f"""
            SELECT *, list_filter(range(1, len(timestamp) + 1),
                lambda i: i = 1 OR timestamp[i] - timestamp[i - 1] > {SESSION_GAP_S}) AS starts FROM ({kept})"""
        sessions = f"""
            SELECT *, flatten(list_transform(list_zip(starts, starts[2:]), lambda start, j: list_resize(
                []::INTEGER[], coalesce(start[2], len(timestamp) + 1) - start[1], (j - 1)::INTEGER))) AS session_index
            FROM ({starts})"""
        _duckdb_write(database, work, sessions)

    return build


def duckdb_windows(work: Work) -> Callable[[], object]:
    """DuckDB with window functions."""
    import duckdb

    database = _duckdb(duckdb, work)

    def build() -> None:
        bits = _duckdb_songs(database, work)
        order = "OVER (PARTITION BY user_id ORDER BY key)"
        repeated = f"SELECT user_id, key, lag(key) {order} AS before FROM ({_duckdb_keys(work, bits)})"
        numbered = f"""
            SELECT user_id, key, count(*) OVER (PARTITION BY user_id) - row_number() {order} >= {MAX_HISTORY} AS old,
                (key >> {bits}) - lag(key >> {bits}) {order} > {SESSION_GAP_S} AS cut
            FROM ({repeated}) WHERE before IS DISTINCT FROM key"""
        session = "OVER (PARTITION BY user_id ORDER BY key ROWS UNBOUNDED PRECEDING)"
        cut = f"SELECT user_id, key, old, coalesce(sum(cut::INTEGER) {session}, 0)::INTEGER AS s FROM ({numbered})"
        lists = f"""
            SELECT user_id, list({{'key': key, 's': s}} ORDER BY key) FILTER (NOT old) AS l,
                list(DISTINCT (key & {2**bits - 1})::INTEGER) FILTER (old) AS heard FROM ({cut}) GROUP BY user_id"""
        sessions = f"""
            SELECT user_id, list_transform(l, lambda x: (x.key & {2**bits - 1})::INTEGER) AS item_index,
                list_transform(l, lambda x: x.key >> {bits}) AS timestamp,
                list_transform(l, lambda x: x.s - l[1].s) AS session_index,
                list_sort(coalesce(heard, [])) AS heard_before FROM ({lists})"""
        _duckdb_write(database, work, sessions)

    return build


def _duckdb(duckdb: Any, work: Work) -> Any:
    settings = {
        "threads": work.cores,
        "memory_limit": f"{work.memory_gb:g}GB",
        "temp_directory": str(work.temp),
        "preserve_insertion_order": False,
    }
    return duckdb.connect(":memory:", config=settings)


def _duckdb_valid(work: Work) -> str:
    return f"""
        SELECT user_id, item_id, timestamp
        FROM read_parquet('{work.logs}/*/*.parquet', hive_partitioning = true, hive_types = {{'ds': DATE}})
        WHERE user_id IS NOT NULL AND item_id IS NOT NULL
            AND timestamp >= epoch(ds)::BIGINT - {MAX_LATE_DAYS * DAY_SECONDS}
            AND timestamp < epoch(ds)::BIGINT + {DAY_SECONDS}"""


def _duckdb_songs(database: Any, work: Work) -> int:
    """Number the songs and write the numbers. Returns how many bits the largest number has."""
    database.execute(f"""
        CREATE TABLE songs AS SELECT item_id, row_number() OVER (ORDER BY item_id)::INTEGER AS item_index
        FROM (SELECT DISTINCT item_id FROM ({_duckdb_valid(work)}))""")
    database.execute(f"COPY songs TO '{work.output}/songs.parquet' (FORMAT parquet)")
    [(count,)] = database.execute("SELECT count(*) FROM songs").fetchall()
    return int(count).bit_length()


def _duckdb_keys(work: Work, bits: int) -> str:
    return f"""
        SELECT user_id, (timestamp << {bits}) | item_index AS key
        FROM ({_duckdb_valid(work)}) JOIN songs USING (item_id)"""


def _duckdb_write(database: Any, work: Work, histories: str) -> None:
    """Histories into one sorted file a bucket."""
    database.execute(f"""
        CREATE TABLE histories AS SELECT (hash(user_id) % {work.buckets})::INTEGER AS bucket,
            user_id, item_index, timestamp, session_index, heard_before, len(item_index)::INTEGER AS num_events
        FROM ({histories}) ORDER BY bucket, user_id""")
    local = threading.local()

    def write(bucket: int) -> None:
        if not hasattr(local, "cursor"):
            local.cursor = database.cursor()
        local.cursor.execute(f"""
            COPY (SELECT * EXCLUDE bucket FROM histories WHERE bucket = {bucket} ORDER BY user_id)
            TO '{work.bucket_file(bucket)}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL {ZSTD_LEVEL})""")

    with ThreadPoolExecutor(work.cores) as pool:
        list(pool.map(write, range(work.buckets)))


def polars_partitioned(work: Work) -> Callable[[], object]:
    """Polars, bucket by bucket."""
    pl = _polars(work)

    def build() -> None:
        keys, bits = _polars_keys(pl, work)
        parts = work.temp / "keys"
        keys.sink_parquet(
            pl.PartitionBy(parts, key="bucket", include_key=False),
            mkdir=True,
            compression="lz4",
            statistics=False,
            maintain_order=False,
        )

        def write(bucket: int) -> None:
            if not (parts / f"bucket={bucket}").exists():
                return  # no listener falls into it
            plays = pl.scan_parquet(f"{parts}/bucket={bucket}/*.parquet", hive_partitioning=False)
            lists = plays.group_by("user_id").agg("key").with_columns(pl.col("key").list.sort()).sort("user_id")
            histories = _polars_histories(pl, lists.explode("key").collect(), bits)
            histories.write_parquet(work.bucket_file(bucket), compression_level=ZSTD_LEVEL)

        with ThreadPoolExecutor(work.cores) as pool:
            list(pool.map(write, range(work.buckets)))

    return build


def polars_sort(work: Work) -> Callable[[], object]:
    """Polars, one sort of everything."""
    pl = _polars(work)

    def build() -> None:
        keys, bits = _polars_keys(pl, work)
        plays = keys.sort("bucket", "user_id", "key").collect(engine="streaming")
        histories = _polars_histories(pl, plays.select("user_id", "key"), bits).with_columns(_polars_bucket(pl, work))
        for (bucket,), part in histories.partition_by("bucket", as_dict=True, include_key=False).items():
            part.write_parquet(work.bucket_file(bucket), compression_level=ZSTD_LEVEL)

    return build


def _polars(work: Work) -> Any:
    os.environ |= {"POLARS_MAX_THREADS": str(work.cores), "POLARS_TEMP_DIR": str(work.temp)}
    import polars

    return polars


def _polars_bucket(pl: Any, work: Work) -> Any:
    return (pl.col("user_id").hash(0) % work.buckets).alias("bucket")


def _polars_keys(pl: Any, work: Work) -> tuple[Any, int]:
    """Valid plays as (user_id, key, bucket), lazily, and the bits of a key that hold the song; writes the songs."""
    landed = pl.col("ds").cast(pl.Datetime("us")).dt.epoch("s")
    plays = pl.scan_parquet(f"{work.logs}/*/*.parquet", hive_partitioning=True, hive_schema={"ds": pl.Date}).filter(
        pl.col("user_id").is_not_null(),
        pl.col("item_id").is_not_null(),
        pl.col("timestamp") >= landed - MAX_LATE_DAYS * DAY_SECONDS,
        pl.col("timestamp") < landed + DAY_SECONDS,
    )
    songs = plays.select(pl.col("item_id").unique().sort()).with_row_index("item_index", 1).collect(engine="streaming")
    songs.with_columns(pl.col("item_index").cast(pl.Int32)).write_parquet(work.output / "songs.parquet")
    bits = len(songs).bit_length()
    indexed = plays.join(songs.lazy().with_columns(pl.col("item_index").cast(pl.Int64)), on="item_id")
    key = (pl.col("timestamp") * 2**bits + pl.col("item_index")).alias("key")
    return indexed.select("user_id", key, _polars_bucket(pl, work)), bits


def _polars_histories(pl: Any, plays: Any, bits: int) -> Any:
    """Plays sorted by (user_id, key) as one row a listener."""
    same = (pl.col("user_id") == pl.col("user_id").shift()).fill_null(False)
    plays = plays.filter(~(same & (pl.col("key") == pl.col("key").shift()).fill_null(False)))
    plays = plays.with_columns(timestamp=pl.col("key") // 2**bits, item_index=(pl.col("key") % 2**bits).cast(pl.Int32))
    gap = (pl.col("timestamp") - pl.col("timestamp").shift() > SESSION_GAP_S).fill_null(True)
    plays = plays.with_columns(session_index=(~same | gap).cast(pl.Int32).cum_sum())
    lists = plays.lazy().group_by("user_id", maintain_order=True)
    rows = lists.agg("item_index", "timestamp", "session_index", pl.len().cast(pl.Int64).alias("n")).collect()
    older = pl.col("item_index").list.head(pl.col("n") - MAX_HISTORY).list.unique().list.sort()
    long = rows.filter(pl.col("n") > MAX_HISTORY).select("user_id", older.alias("heard_before"))
    rows = rows.with_columns(pl.col("item_index", "timestamp", "session_index").list.tail(MAX_HISTORY))
    rows = rows.join(long, on="user_id", how="left", maintain_order="left")
    return rows.select(
        "user_id",
        "item_index",
        "timestamp",
        pl.col("session_index") - pl.col("session_index").list.first(),
        pl.col("heard_before").fill_null([]),
        num_events=pl.col("item_index").list.len().cast(pl.Int32),
    )


OURS = ("ours", "ours-on-executors")
CONTESTANTS: dict[str, Start] = {
    "ours": ours,
    "ours-on-executors": ours_on_executors,
    "duckdb": duckdb_lists,
    "polars": polars_partitioned,
    "duckdb-windows": duckdb_windows,
    "polars-sort": polars_sort,
}


def songs_of(name: str, work: Work) -> pa.Table:
    """A contestant's vocabulary: columns item_id, item_index."""
    if name not in OURS:
        return pq.read_table(work.output / "songs.parquet")
    from pipelines.histories import vocabulary

    return vocabulary.read(f"{work.folder}/workspace/vocabulary", "int64").table


def histories_of(name: str, work: Work) -> Iterator[pa.Table]:
    """The histories that a contestant wrote, a row group at a time, bucket after bucket."""
    if name not in OURS:
        for file in sorted(work.output.glob("bucket-*.parquet")):
            source = pq.ParquetFile(file)
            for group in range(source.num_row_groups):
                yield source.read_row_group(group)
        return
    from pipelines.histories.shards import read_manifest

    manifest = read_manifest(f"{work.folder}/workspace/sequences/ds={work.ds}")
    for file, group, _ in manifest.row_groups():
        yield manifest.read(file, group)


def output_folder(name: str, work: Work) -> Path:
    """The folder of a contestant's finished files."""
    return Path(work.folder, "workspace", "sequences") if name in OURS else work.output


def main() -> None:
    """Run one contestant."""
    name, file = sys.argv[1:]
    work = Work(**json.loads(Path(file).read_text()))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: work.cores])
    build = CONTESTANTS[name](work)
    ready = {"at": time.time(), "cpu_s": processes.tree_cpu_s()}
    result = build()
    print(json.dumps({**ready, "task_cpu_s": result["task_cpu_s"] if isinstance(result, dict) else None}), flush=True)


@dataclass(frozen=True)
class StageRun:
    """What one contestant cost in a process of its own, and how much of that was its start."""

    cost: processes.Cost
    ready_s: float  # from the start of the process to the beginning of the work
    ready_cpu_s: float
    task_cpu_s: float | None  # processor seconds of the Python code of Spark's tasks; None for other engines


def run_in_process(name: str, work: Work) -> StageRun:
    """Run a contestant in a fresh process, its logs in the page cache. Raises RuntimeError if it fails."""
    for folder in (work.output, work.temp):
        folder.mkdir(parents=True, exist_ok=True)
    file = Path(work.folder, "work.json")
    file.write_text(json.dumps(asdict(work)))
    industrial_logs.into_page_cache(Path(work.logs))
    started = time.time()
    cost = processes.run(
        [sys.executable, "-m", "benchmarks.lib.contestants", name, str(file)],
        folder=Path(work.folder),
        environment={"TMPDIR": str(work.temp), "JAVA_TOOL_OPTIONS": f"-Djava.io.tmpdir={work.temp}"},
    )
    if cost.returncode:
        raise RuntimeError(f"{name} ended with {cost.returncode}:\n{cost.output[-4000:]}")
    shutil.rmtree(work.temp, ignore_errors=True)
    # Behind it may be what executors of their own say when they end.
    ready = json.loads(next(line for line in reversed(cost.output.splitlines()) if line.startswith('{"at": ')))
    return StageRun(cost, ready["at"] - started, ready["cpu_s"], ready["task_cpu_s"])


def versions() -> str:
    """Versions of the engines and the memory of this machine, for a table's caption."""
    engines = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("pyspark", "pyarrow", "numpy", "duckdb", "polars")
    )
    return f"{psutil.virtual_memory().total / 1e9:.0f} GB memory, {engines}"


if __name__ == "__main__":
    main()
