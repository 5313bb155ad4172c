"""Storage: atomic writes and listings, on the local disk and on a real S3 server."""

import os
import time
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines import storage
from pipelines.errors import InputError


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
