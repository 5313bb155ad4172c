import datetime as dt
import hashlib
import itertools
import json
import os
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.lib.fault_proxy import FaultProxy
from pipelines import storage
from pipelines.errors import InputError
from pipelines.histories.buckets import user_bucket
from pipelines.histories.histories import Histories
from pipelines.histories.merge import overlay
from pipelines.histories.shards import (
    IncrementFile,
    Manifest,
    inputs_table,
    read_item_counts,
    read_manifest,
    unlisted,
    write_item_counts,
    write_manifest,
)
from pipelines.histories.writer import IncrementWriter, ShardWriter
from pipelines.schema import sequence_schema
from pipelines.storage import JSON_DIGEST, delete_files, join, list_files, write_table


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
    writer = shard_writer(folder, path, row_group_events)
    for table in tables:
        writer.write(Histories.from_table(table))
    return writer.close()


def shard_writer(folder, path, row_group_events) -> ShardWriter:
    cut = {"session_gap_s": 1800, "row_group_events": row_group_events}
    return ShardWriter(str(folder), path, bucket=0, user_id_type="int64", **cut)


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
    writer = shard_writer(tmp_path, "a.parquet", 1)
    writer.write(Histories.from_table(rows([5])))
    del writer
    assert not (tmp_path / "a.parquet").exists()


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    written = manifest(tmp_path, [write(tmp_path, [rows([3, 9, 1])])], counts={"rejected": {"null_user_id": 3}})
    assert read_manifest(str(tmp_path)) == written
    assert [(group, n) for _, group, n in written.row_groups()] == [(0, 2), (1, 1)]


def bucket_with_an_increment(folder) -> Any:
    """Listeners 0 to 5 in row groups of 3, 2 and 1; the increment has plays of listeners 0, 1 and 7."""
    base = write(folder, [rows([4, 4, 4, 1, 30, 2])])
    writer = IncrementWriter(str(folder), "bucket=00000/increment-b.parquet", user_id_type="int64")
    new = Histories.from_table(rows([2, 3]))
    writer.write(replace(new, timestamp=new.timestamp + 100), new.lengths)
    writer.write(new.slice(0, 0), new.lengths[:0])
    writer.write(Histories.from_table(rows([1], first_user=7)), np.array([1]))
    increment = writer.close()
    assert increment is not None
    return replace(base, rows=7, events=base.events + 6, row_groups=(3, 2, 2), increments=(increment,))


def test_a_row_group_under_an_increment_is_read_as_whole_histories(tmp_path):
    file = bucket_with_an_increment(tmp_path)
    published = manifest(tmp_path, [file], max_history=30)
    assert [published.histories(file, group).lengths.tolist() for group in range(3)] == [[6, 7, 4], [1, 30], [2, 1]]
    for group, names in itertools.product(range(3), (None, ["user_id", "num_events"], ["timestamp", "user_id"])):
        layers = overlay(published.layers(file, group), max_history=30)
        assert published.read(file, group, names) == layers.to_table(session_gap_s=1800, columns=names)
        assert published.histories(file, group).users.tolist() == published.sizes(file, group)[0].tolist()
        assert published.histories(file, group).lengths.tolist() == published.sizes(file, group)[1].tolist()
    whole = published.histories(file)
    assert (whole.users.tolist(), len(whole.timestamp)) == ([0, 1, 2, 3, 4, 5, 7], 51)


def test_what_later_days_wrote_of_a_row_group_is_its_increments_or_its_new_base(tmp_path):
    file = bucket_with_an_increment(tmp_path)
    published = manifest(tmp_path, [file], max_history=30)
    day = dt.timedelta(days=1)
    old = replace(file, home=str(published.ds - 2 * day))
    added = [published.added_after(old, group, published.ds - day) for group in range(3)]
    assert added[0] is not None and (added[0].users.tolist(), added[0].lengths.tolist()) == ([0, 1], [2, 3])
    assert added[0].timestamp.tolist() == [100, 101, 100, 101, 102]
    assert added[1] is None
    assert added[2] is not None and added[2].users.tolist() == [7]
    assert published.added_after(old, 0, published.ds) is None
    rewritten = published.added_after(file, 0, published.ds - day)
    assert rewritten is not None and rewritten.lengths.tolist() == published.histories(file, 0).lengths.tolist()


def test_sessions_are_cut_only_when_they_are_asked_for(tmp_path, monkeypatch):
    file = bucket_with_an_increment(tmp_path)
    published = manifest(tmp_path, [file])

    def refuse(*_, **__):
        raise AssertionError("sessions are cut")

    monkeypatch.setattr("pipelines.histories.histories.session_index", refuse)
    published.histories(file, 0)
    published.read(file, 0, ["item_index", "timestamp"])
    with pytest.raises(AssertionError, match="sessions are cut"):
        published.read(file, 0)


def test_manifests_of_earlier_formats_are_read(tmp_path):
    """Format 2 called increments deltas, format 1 had none."""
    file = bucket_with_an_increment(tmp_path)
    published = manifest(tmp_path, [file])
    path = tmp_path / "_manifest.json"
    content = json.loads(path.read_text())
    del content[JSON_DIGEST]  # which earlier releases did not write
    assert content["format"] == 3 and "deltas" not in path.read_text()
    for stored in content["files"]:
        stored["deltas"] = stored.pop("increments")
    path.write_text(json.dumps({**content, "format": 2}))
    assert read_manifest(str(tmp_path)) == published
    assert isinstance(read_manifest(str(tmp_path)).files[0].increments[0], IncrementFile)
    for stored in content["files"]:
        del stored["deltas"]
    path.write_text(json.dumps({**content, "format": 1}))
    assert read_manifest(str(tmp_path)).files == (replace(file, increments=()),)
    path.write_text(json.dumps({**content, "format": 4}))
    with pytest.raises(InputError, match="is not of shard format 3"):
        read_manifest(str(tmp_path))


def test_files_that_no_manifest_lists_are_found_and_listed_ones_are_not(tmp_path):
    old, new = write(tmp_path, [rows([1])]), write(tmp_path, [rows([2])], path="bucket=00000/part-b.parquet")
    published = manifest(tmp_path, [new])
    write_item_counts(published.uri(published.item_counts), np.array([0, 3]))
    write_table(published.uri(published.inputs), inputs_table([]))
    assert (tmp_path / old.path).exists()
    delete_files(unlisted(published))
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


@pytest.mark.parametrize(("whole", "asked"), [(storage.WHOLE_BYTES, {"get": 1}), (1_000, {"head": 3, "get": 6})])
def test_an_object_store_is_asked_once_for_a_small_shard_and_twice_for_a_row_group(s3, monkeypatch, whole, asked):
    """Of a big one: its footer, and the columns side by side."""
    monkeypatch.setattr(storage, "WHOLE_BYTES", whole)
    file = write(f"{s3}/sequences/ds=2026-03-02", [rows([9] * 8)], row_group_events=20)
    assert len(file.row_groups) == 3 and file.bytes > 1_000
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        published = manifest(f"{s3}/sequences/ds=2026-03-02", [file])
        before = Counter(proxy.traffic)
        assert published.read(file) == rows([9] * 8)
        found = {kind: count for kind, count in (proxy.traffic - before).items() if kind not in ("in", "out")}
    assert found == asked


def flipped(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


@pytest.mark.parametrize("check_digests", [False, True])
def test_a_flipped_bit_of_a_shard_is_never_read_as_another_history(tmp_path, check_digests):
    """Page checksums leave the footer, where few bits matter; the digest leaves nothing."""
    file = write(tmp_path, [rows([1, 5, 9, 10] * 20)])
    published = replace(manifest(tmp_path, [file]), check_digests=check_digests)
    path, whole, rng = tmp_path / file.path, published.read(file), random.Random(7)
    content, unseen = path.read_bytes(), 0
    for _ in range(200):
        path.write_bytes(flipped(content, rng))
        storage.forget_digests()
        try:
            assert published.read(file) == whole
            unseen += 1
        except InputError as error:
            assert str(path) in str(error) and "fuxi sessionize" in str(error)
    assert unseen == 0 if check_digests else unseen < 120  # of this small file two fifths are the footer
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match="bytes, not the"):
        published.read(file)


def test_a_shard_of_an_earlier_release_has_no_page_checksums_and_is_read(tmp_path):
    file = write(tmp_path, [rows([1, 2])])
    whole = pq.read_table(tmp_path / file.path)
    pq.write_table(whole, tmp_path / file.path, compression="zstd", use_dictionary=False)
    content = (tmp_path / file.path).read_bytes()
    earlier = replace(file, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    assert manifest(tmp_path, [earlier]).read(earlier) == whole


def test_buckets_are_those_of_spark(spark):
    from pyspark.sql import functions as F

    for users in ([0, 1, -5, 2**62, -(2**63), 12345], ["", "a", "é", "user-123456789", "x" * 100]):
        frame = spark.createDataFrame([(user,) for user in users], ["user_id"])
        expected = [row[0] for row in frame.select(F.pmod(F.xxhash64("user_id"), F.lit(256))).collect()]
        assert user_bucket(pa.array(users), 256).tolist() == expected
