"""Storage: atomic writes and listings, on the local disk and on a real S3 server."""

import datetime as dt
import os
import pickle
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.lib.fault_proxy import FaultProxy, Faults
from pipelines import delta_tables, digests, object_store, storage
from pipelines.errors import InputError
from pipelines.schema import DS, TableSpec

SPEC = TableSpec("numbers", pa.schema([(DS, pa.date32()), ("n", pa.int64())]), (DS,))


def round_trip(root: str) -> None:
    uri = storage.join(root, "a", "b.json")
    assert not storage.exists(uri)
    storage.write_json(uri, {"x": [1, 2]})
    storage.write_json(uri, {"x": [3]})
    assert storage.read_json(uri) == {"x": [3]}
    table = pa.table({"n": [1, 2, 3]})
    storage.write_table(storage.join(root, "a", "t.parquet"), table)
    assert storage.read_table(storage.join(root, "a", "t.parquet")) == table
    storage.write_bytes(storage.join(root, "a", "_hidden", "x"), b"not listed")
    listed = storage.list_files(storage.join(root, "a"))
    assert [storage.name(file.uri) for file in listed] == ["b.json", "t.parquet"]
    assert all(file.size > 0 and file.etag for file in listed)
    assert storage.list_files(storage.join(root, "nothing")) == []
    storage.write_bytes(storage.join(root, "ds=2", "x"), b"1")
    assert storage.list_folders(root) == ["a", "ds=2"]
    storage.delete_folder(storage.join(root, "a"))
    assert not storage.exists(uri)
    storage.delete_folder(storage.join(root, "a"))


def test_files_go_round_on_the_local_disk(tmp_path: Path) -> None:
    round_trip(str(tmp_path / "w"))


def test_files_go_round_on_s3(s3: str) -> None:
    round_trip(storage.join(s3, "w"))


def test_folders_copy_to_s3_and_back(s3: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "x.bin").write_bytes(b"\x00\x01")
    storage.upload_folder(str(source), f"{s3}/export")
    storage.download_folder(f"{s3}/export", str(tmp_path / "back"))
    assert (tmp_path / "back" / "deep" / "x.bin").read_bytes() == b"\x00\x01"


def test_an_interrupted_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "x.json")
    storage.write_json(uri, {"version": 1})

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        storage.write_json(uri, {"version": 2})
    assert storage.read_json(uri) == {"version": 1}


def test_an_etag_changes_with_the_content(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "d" / "x"), b"one")
    before = storage.list_files(str(tmp_path / "d"))[0].etag
    time.sleep(0.01)
    storage.write_bytes(str(tmp_path / "d" / "x"), b"two")
    assert storage.list_files(str(tmp_path / "d"))[0].etag != before


@pytest.mark.parametrize("part", ["../x", "/etc/passwd", "a/../../b"])
def test_paths_that_leave_the_workspace_are_refused(part: str) -> None:
    with pytest.raises(InputError, match="leave"):
        storage.join("/workspace", part)


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match=r"x\.json is not valid JSON"):
        storage.read_json(str(tmp_path / "x.json"))
    (tmp_path / "x.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(InputError, match=r"x\.parquet cannot be read as Parquet"):
        storage.read_table(str(tmp_path / "x.parquet"))


def test_other_schemes_are_refused() -> None:
    with pytest.raises(InputError, match="only local paths and s3"):
        storage.absolute("gs://bucket/x")


FAULTS = Faults(errors=0.08, resets=0.08, delays=0.03, delay_s=(0.1, 0.3))


def test_every_library_comes_through_a_faulty_store(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole files, listings, parts of files, and commits of Delta tables, none of them lost or made twice."""
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"], FAULTS, seed=3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setattr(random, "uniform", lambda low, high: min(high, 0.2))  # the pauses of `pauses`
        for number in range(4):
            storage.write_json(f"{s3}/w/{number}.json", {"n": number}, fence=number)
            assert storage.read_json(f"{s3}/w/{number}.json") == {"n": number}
        assert len(storage.list_files(f"{s3}/w")) == 4
        storage.write_table(f"{s3}/w/t.parquet", pa.table({"n": [1, 2]}))
        assert storage.read_table(f"{s3}/w/t.parquet")["n"].to_pylist() == [1, 2]
        for number in range(4):
            row = {DS: dt.date(2026, 3, 1 + number), "n": number}
            delta_tables.overwrite(f"{s3}/table", SPEC, [row], {DS: row[DS]})
        base = delta_tables.version(f"{s3}/table")
        more = pa.Table.from_pylist([{DS: dt.date(2026, 4, 1), "n": 4}], SPEC.schema)
        delta_tables.append(f"{s3}/table", more, base=base, transaction=("test", 1), metadata={})
        assert sorted(row["n"] for row in delta_tables.read_days(f"{s3}/table")) == list(range(5))
        assert min(proxy.counts[kind] for kind in ("errors", "resets", "late_resets")) > 1


def _read_parquet(uri: str) -> int:
    return storage.read_table(uri).num_rows


def _read_by_arrow(uri: str) -> int:
    fs, path = storage.filesystem(uri)
    with fs.open_input_file(path) as file:
        return len(file.read())


READERS = {
    "whole": lambda uri: len(storage.read_bytes(uri)),
    "parts": _read_by_arrow,
    "stream": lambda uri: digests.digest_of(uri).sha256,
    "Parquet": _read_parquet,
    "Delta": lambda uri: delta_tables.read_days(storage.parent(storage.parent(uri)))[-1],
}


@pytest.mark.parametrize("reader", READERS)
def test_an_answer_that_breaks_off_in_its_middle_is_asked_for_again(
    s3: str, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    read = READERS[reader]
    numbers = np.random.default_rng(1).integers(1 << 60, size=150_000).tolist()
    rows = [{DS: dt.date(2026, 3, 1), "n": number} for number in numbers]
    delta_tables.overwrite(s3, SPEC, rows, {DS: rows[0][DS]})
    [uri] = delta_tables.open_table(s3).file_uris()  # type: ignore[union-attr]
    assert storage.file_info(uri).size > storage.WHOLE_BYTES
    wanted = read(uri)
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"], Faults(breaks=0.4), seed=1) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setattr(random, "uniform", lambda low, high: min(high, 0.05))
        assert [read(uri) for _ in range(2)] == [wanted] * 2
        assert proxy.counts["breaks"]


@pytest.mark.parametrize(("reader", "seconds"), [("whole", 2.5), ("parts", 1)])
def test_an_outage_is_waited_for_by_many_threads_at_once(
    s3: str, monkeypatch: pytest.MonkeyPatch, reader: str, seconds: float
) -> None:
    """The AWS libraries allow a process a number of retries, after which every request fails at once."""
    uri = f"{s3}/x"
    storage.write_bytes(uri, b"content")
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy, ThreadPoolExecutor(80) as pool:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setattr(random, "uniform", lambda low, high: min(high / 10, 1))
        READERS[reader](uri)
        proxy.outage(seconds)
        assert list(pool.map(READERS[reader], [uri] * 80)) == [7] * 80
        assert proxy.counts["outage"] > 110


@pytest.mark.parametrize("whole", [0, storage.WHOLE_BYTES])
def test_a_store_that_does_not_answer_makes_no_file_a_damaged_one(
    s3: str, monkeypatch: pytest.MonkeyPatch, whole: int
) -> None:
    monkeypatch.setattr(storage, "WHOLE_BYTES", whole)
    monkeypatch.setattr(object_store, "ATTEMPTS", 2)
    object_store._filesystem.cache_clear()
    storage.write_table(f"{s3}/w/t.parquet", pa.table({"n": list(range(1000))}))
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with storage.open_parquet(f"{s3}/w/t.parquet") as file:
            assert file.metadata.num_rows == 1000
        proxy.outage(120)
        with pytest.raises(OSError, match="AWS Error"):
            storage.read_table(f"{s3}/w/t.parquet")
        proxy.outage(0)
        storage.write_bytes(f"{s3}/w/t.parquet", b"no Parquet")
        with pytest.raises(InputError, match="cannot be read as Parquet"):
            storage.read_table(f"{s3}/w/t.parquet")
    object_store._filesystem.cache_clear()


def test_a_bucket_or_a_server_that_is_not_there_is_named_soon(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"there is no bucket s3://nowhere: create it"):
        storage.check_reachable("s3://nowhere/workspace")
    storage.check_reachable(f"{s3}/workspace")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(InputError, match=r"http://127.0.0.1:9 does not answer .*see whether the server runs"):
        storage.check_reachable(f"{s3}/workspace")
    assert time.monotonic() - started < 10


def test_unfinished_uploads_of_a_day_are_removed_by_its_next_run(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = object_store.client()
    for key in ("w/recommendations/ds=2026-03-02/part-1", "w/sequences/ds=2026-03-03/part-1", "other/ds=2026-03-02/x"):
        client.create_multipart_upload(Bucket="workspace-test", Key=key)
    with monkeypatch.context() as patch:  # this server says of every upload that it began in 2010
        patch.setattr(object_store, "_STALE_UPLOAD", dt.timedelta(days=36_500))
        assert storage.abort_uploads(f"{s3}/w", own="/ds=2026-03-02/") == 1
    left = [upload["Key"] for upload in client.list_multipart_uploads(Bucket="workspace-test")["Uploads"]]
    assert sorted(left) == ["other/ds=2026-03-02/x", "w/sequences/ds=2026-03-03/part-1"]
    assert storage.abort_uploads(f"{s3}/w", own="/ds=2026-03-04/") == 1  # the old one of another day
    assert storage.abort_uploads("/tmp/w", own="/ds=2026-03-02/") == 0


def test_all_that_is_written_asks_for_encryption(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SERVER_SIDE_ENCRYPTION", "aws:kms")
    monkeypatch.setenv("AWS_SSE_KMS_KEY_ID", "key-7")
    storage.write_json(f"{s3}/w/whole.json", {})
    fs, path = storage.filesystem(f"{s3}/w/parts.bin")
    with pickle.loads(pickle.dumps(fs)).open_output_stream(path) as stream:  # as Ray sends it to workers
        for _ in range(5):
            stream.write(bytes(5 << 20))
    fs.copy_file(path, f"{path}.copy")
    delta_tables.overwrite(f"{s3}/w/table", SPEC, [{DS: dt.date(2026, 3, 1), "n": 1}], {DS: "2026-03-01"})
    assert storage.file_info(f"{s3}/w/parts.bin").size == 25 << 20
    client = object_store.client()
    keys = [found["Key"] for found in client.list_objects_v2(Bucket="workspace-test")["Contents"]]
    assert len(keys) > 5
    for key in keys:
        head = client.head_object(Bucket="workspace-test", Key=key)
        assert (head.get("ServerSideEncryption"), head.get("SSEKMSKeyId")) == ("aws:kms", "key-7"), key


def test_of_two_that_create_a_file_one_does(s3: str, tmp_path: Path) -> None:
    for uri in (f"{s3}/w/_workspace.json", str(tmp_path / "w" / "_workspace.json")):
        assert storage.create_json(uri, {"by": 1})
        assert not storage.create_json(uri, {"by": 2})
        assert storage.read_json(uri) == {"by": 1}
    assert [file.name for file in (tmp_path / "w").iterdir()] == ["_workspace.json"]
