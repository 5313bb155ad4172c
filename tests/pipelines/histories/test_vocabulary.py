import datetime as dt
from contextlib import nullcontext

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from pipelines import delta_tables
from pipelines.errors import BusyError
from pipelines.histories import vocabulary
from pipelines.schema import vocabulary_rows

ONE, TWO, THREE = (dt.date(2026, 3, day) for day in (1, 2, 3))


def append(uri, ids, ds, kind="int64"):
    return vocabulary.append(uri, pa.array(ids), ds=ds, item_id_type=kind, run_id="run")


def test_new_songs_of_a_day_get_the_next_indices_in_item_id_order(tmp_path):
    uri = str(tmp_path / "vocabulary")
    append(uri, [50, 20, 40], ONE)
    known = append(uri, [10, 40, 30], TWO)
    assert known.table["item_id"].to_pylist() == [20, 40, 50, 10, 30]
    assert known.table["item_index"].to_pylist() == [1, 2, 3, 4, 5]
    assert (known.size(), known.size(ONE), known.size(TWO), known.new_on(TWO)) == (5, 3, 5, 2)


def test_a_day_written_twice_changes_nothing_and_makes_no_commit(tmp_path):
    uri = str(tmp_path / "vocabulary")
    append(uri, [5, 6], ONE)
    append(uri, [7], TWO)
    again = append(uri, [6, 5], ONE)
    assert again.size(ONE) == 2 and delta_tables.version(uri) == 1
    assert again.lookup(pa.array([7, 8, 5])).to_pydict() == {"item_id": [7, 5], "item_index": [3, 1]}


def test_string_ids_are_ordered_by_their_bytes(tmp_path):
    known = append(str(tmp_path / "vocabulary"), ["b", "é", "B", "z"], ONE, "string")
    assert known.table["item_id"].to_pylist() == ["B", "b", "z", "é"]


def test_before_the_first_day_it_is_empty(tmp_path):
    uri = str(tmp_path / "vocabulary")
    assert delta_tables.version(uri) is None and vocabulary.read(uri, "int64").size() == 0
    assert not (tmp_path / "vocabulary").exists()


@pytest.mark.parametrize("lost", [1, 99])
def test_of_two_runs_that_extend_it_at_once_the_second_tries_again_and_is_refused_at_last(tmp_path, monkeypatch, lost):
    uri, read = str(tmp_path / "vocabulary"), vocabulary.read
    append(uri, [1], ONE)
    stale = [read(uri, "int64")] * lost  # what the second run saw before the first committed
    append(uri, [2], TWO)
    with monkeypatch.context() as patch, pytest.raises(BusyError, match="run again") if lost > 1 else nullcontext():
        patch.setattr(vocabulary, "read", lambda *_, **named: stale.pop() if stale else read(*_, **named))
        append(uri, [2, 3], THREE)
    assert read(uri, "int64").table["item_id"].to_pylist() == [1, 2, 3][: 3 if lost == 1 else 2]


def test_shards_of_an_older_day_have_room_for_songs_that_a_later_day_brought(tmp_path):
    uri = str(tmp_path / "vocabulary")
    append(uri, [5], TWO)
    songs = append(uri, [7, 9], THREE)
    assert [songs.size_for(ds, songs.lookup(pa.array([7]))) for ds in (ONE, TWO, THREE)] == [2, 2, 3]
    assert songs.size_for(ONE, songs.lookup(pa.array([], pa.int64()))) == 0
    assert songs.size_for(TWO, songs.lookup(pa.array([5])), at_least=3) == 3


def test_on_an_object_store(s3):
    uri = f"{s3}/vocabulary"
    append(uri, [3, 1], ONE)
    assert append(uri, [2], TWO).table["item_id"].to_pylist() == [1, 3, 2]


def test_commits_say_which_run_made_them(tmp_path):
    uri = str(tmp_path / "vocabulary")
    append(uri, [3, 1], ONE)
    assert DeltaTable(uri).history(1)[0]["run_id"] == "run"


def test_ids_that_are_not_utf8_from_an_earlier_release_are_escaped_and_keep_their_index(tmp_path):
    uri, raw = str(tmp_path / "vocabulary"), pa.array([b"a", b"Andr\xe9", b"z"])
    rows = vocabulary_rows(pa.array(["a", "b", "z"]), ONE)
    ids = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    write_deltalake(uri, rows.set_column(1, rows.schema.field("item_id"), ids))
    found = append(uri, ["c", "z"], TWO, "string")
    assert found.table["item_id"].to_pylist() == ["a", "Andr\\xe9", "z", "c"]
    assert found.lookup(pa.array(["z", "c"]))["item_index"].to_pylist() == [3, 4]
