"""An object store whose lists lack new objects: what is found by its name in spite of that."""

import os

import pyarrow as pa
import pytest

from benchmarks.lib.fault_proxy import FaultProxy, Faults
from pipelines import digests, storage
from pipelines.forget import blocklist

NEVER_S = 3600.0


def test_lists_of_the_proxy_lack_what_is_new(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{s3}/a/old", b"1")
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"], Faults(stale_lists=NEVER_S)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        for name in ("a/old", "a/new", "b/new"):
            storage.write_bytes(f"{s3}/{name}", b"2")
        assert [file.uri for file in storage.list_files(s3)] == [f"{s3}/a/old"]
        assert storage.list_folders(s3) == ["a"] and storage.list_files(f"{s3}/b") == []
        assert storage.read_bytes(f"{s3}/a/new") == b"2" and storage.exists(f"{s3}/b/new")
        proxy.faults = Faults(stale_lists=1e-9)
        assert storage.list_folders(s3) == ["a", "b"] and len(storage.list_files(s3)) == 3


def test_who_is_forgotten_stays_so_where_lists_are_late(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, users = f"{s3}/forgotten", pa.array(range(12))
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"], Faults(stale_lists=NEVER_S)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setattr(blocklist, "_MAX_FILES", 3)
        assert [blocklist.add(folder, pa.array([n, n + 1])) for n in range(9)] == [2] + [1] * 8
        assert blocklist.load(folder).mask(users).tolist() == [n < 10 for n in range(12)]
        assert storage.list_files(folder) == []
        proxy.faults = Faults(stale_lists=1e-9)
        files = {file.uri for file in storage.list_files(folder)}
    noted = digests.read_listing(f"{folder}/{digests.NOTED_FILE}")
    assert {f"{folder}/{name}" for name in noted} == files and len(files) < 6
