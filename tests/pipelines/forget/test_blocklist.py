"""The blocklist: who is on it, and what it reveals."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.forget import blocklist
from pipelines.schema import id_type


@pytest.mark.parametrize("kind", ["int64", "string"])
def test_the_list_knows_exactly_those_on_it_and_names_nobody(tmp_path, kind):
    folder = str(tmp_path / "forgotten")
    everybody = [7_310_559_002_218_000 + n for n in range(2000)]
    ids = pa.array([f"u{n}" for n in everybody] if kind == "string" else everybody, id_type(kind))
    assert len(blocklist.load(folder)) == 0
    assert blocklist.add(folder, ids.slice(0, 900)) == 900
    assert blocklist.add(folder, ids.slice(800, 200)) == 100
    listed = blocklist.load(folder)
    assert np.array_equal(listed.mask(ids), np.arange(2000) < 1000)
    mixed = pa.array([None, ids[0].as_py(), ids[1999].as_py(), None, ids[999].as_py()], id_type(kind))
    assert listed.mask(mixed).tolist() == [False, True, False, False, True]
    content = b"".join(file.read_bytes() for file in Path(folder).rglob("*") if file.is_file())
    for user in everybody:
        assert str(user).encode() not in content and user.to_bytes(8, "little") not in content


def test_two_workspaces_have_nothing_in_common_and_many_small_files_become_one(tmp_path):
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    for user in range(40):
        blocklist.add(one, pa.array([user]))
    assert len(list(Path(one).glob("*.parquet"))) < 35
    blocklist.add(other, pa.array(range(40)))
    lists = [blocklist.load(folder) for folder in (one, other)]
    assert all(found.mask(pa.array(range(80))).tolist() == [n < 40 for n in range(80)] for found in lists)
    assert not {bytes(row) for row in lists[0].digests} & {bytes(row) for row in lists[1].digests}


def test_a_list_without_its_key_is_refused(tmp_path):
    blocklist.add(str(tmp_path), pa.array([1]))
    (tmp_path / "key.json").unlink()
    with pytest.raises(Exception, match=r"key\.json is lost.*restore it"):
        blocklist.load(str(tmp_path))
