import datetime as dt
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.histories.buckets import user_bucket
from pipelines.histories.shards import (
    Manifest,
    inputs_table,
    read_item_counts,
    read_manifest,
    remove_unlisted,
    write_item_counts,
    write_manifest,
)
from pipelines.histories.writer import ShardWriter
from pipelines.schema import sequence_schema
from pipelines.storage import join, list_files, write_table


def rows(lengths, first_user=0):
    return pa.Table.from_pylist(
        [
            {
                "user_id": first_user + n,
                "item_index": [1] * length,
                "timestamp": list(range(length)),
                "completion": [100] * length,
                "session_index": [0] * length,
                "heard_before": [],
                "num_events": length,
            }
            for n, length in enumerate(lengths)
        ],
        schema=sequence_schema("int64"),
    )


def write(folder, tables, *, path="bucket=00000/part-a.parquet", row_group_events=10) -> Any:
    writer = ShardWriter(str(folder), path, bucket=0, user_id_type="int64", row_group_events=row_group_events)
    for table in tables:
        writer.write(table)
    return writer.close()


def manifest(folder, files, **values):
    defaults = {
        "ds": dt.date(2026, 3, 2),
        "run_id": "r",
        "parent": None,
        "buckets": 1,
        "max_history": 10,
        "session_gap_s": 1800,
        "user_id_type": "int64",
        "item_id_type": "int64",
        "timezone": "UTC",
        "vocabulary_version": 0,
        "vocabulary_size": 5,
        "data_end": 0,
        "item_counts": "item_counts-a.parquet",
        "inputs": "inputs-a.parquet",
    }
    return write_manifest(str(folder), Manifest(**{**defaults, **values}, files=tuple(files)))


def test_row_groups_are_cut_by_events_whatever_blocks_the_rows_came_in(tmp_path):
    lengths = [4, 4, 4, 1, 30, 2, 2]
    table = rows(lengths)
    whole = write(tmp_path, [table], path="a.parquet")
    pieces = write(tmp_path, [table.slice(n, 1) for n in range(len(lengths))], path="b.parquet")
    assert whole.row_groups == pieces.row_groups == (3, 2, 2)
    assert whole.sha256 == pieces.sha256
    assert (whole.rows, whole.events) == (7, 47)


def test_a_shard_is_described_as_it_lies_on_disk(tmp_path):
    file = write(tmp_path, [rows([3, 9, 1])])
    content = (tmp_path / file.path).read_bytes()
    assert (file.bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    stored = pq.ParquetFile(tmp_path / file.path)
    assert [stored.metadata.row_group(n).num_rows for n in range(stored.num_row_groups)] == list(file.row_groups)
    assert stored.read() == rows([3, 9, 1])


def test_without_rows_there_is_no_file(tmp_path):
    assert write(tmp_path, [rows([])]) is None
    assert list(tmp_path.rglob("*.parquet")) == []


def test_a_writer_that_is_dropped_leaves_nothing_under_the_final_name(tmp_path):
    writer = ShardWriter(str(tmp_path), "a.parquet", bucket=0, user_id_type="int64", row_group_events=1)
    writer.write(rows([5]))
    del writer
    assert not (tmp_path / "a.parquet").exists()


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    written = manifest(tmp_path, [write(tmp_path, [rows([3, 9, 1])])], counts={"rejected": {"null_user_id": 3}})
    assert read_manifest(str(tmp_path)) == written
    assert [(group, n) for _, group, n in written.row_groups()] == [(0, 2), (1, 1)]


def test_files_that_no_manifest_lists_are_removed_and_listed_ones_stay(tmp_path):
    old, new = write(tmp_path, [rows([1])]), write(tmp_path, [rows([2])], path="bucket=00000/part-b.parquet")
    published = manifest(tmp_path, [new])
    write_item_counts(published.uri(published.item_counts), np.array([0, 3]))
    write_table(published.uri(published.inputs), inputs_table([]))
    assert (tmp_path / old.path).exists()
    remove_unlisted(published)
    names = {Path(file.uri).name for file in list_files(str(tmp_path))}
    assert names == {"part-b.parquet", "item_counts-a.parquet", "inputs-a.parquet"}
    assert read_manifest(str(tmp_path)) == published


def test_item_counts_come_back_by_index(tmp_path):
    published = manifest(tmp_path, [])
    counts = np.array([0, 7, 0, 2, 0, 9])
    write_item_counts(join(str(tmp_path), published.item_counts), counts)
    assert read_item_counts(published).tolist() == counts.tolist()


def test_on_an_object_store_a_shard_is_written_and_read(s3):
    folder = f"{s3}/sequences/ds=2026-03-02"
    file = write(folder, [rows([3, 9, 1])])
    published = manifest(folder, [file])
    assert published.read(file) == rows([3, 9, 1])


def test_buckets_are_those_of_spark(spark):
    from pyspark.sql import functions as F

    for users in ([0, 1, -5, 2**62, -(2**63), 12345], ["", "a", "é", "user-123456789", "x" * 100]):
        frame = spark.createDataFrame([(user,) for user in users], ["user_id"])
        expected = [row[0] for row in frame.select(F.pmod(F.xxhash64("user_id"), F.lit(256))).collect()]
        assert user_bucket(pa.array(users), 256).tolist() == expected
