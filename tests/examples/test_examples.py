"""The examples run as they stand, on plays in which each song is followed by the next one of a circle."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

import fuxi_beta
from pipelines.schema import recommendations_table

EXAMPLES = Path(__file__).parents[2] / "examples"
SONGS, LISTENERS, PLAYS = 40, 80, 12


def run(name: str, *arguments: str | Path) -> list[str]:
    """The lines that an example prints."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def plays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet file of user_id, item_id, timestamp, in no order. Listener n ends with song n + PLAYS - 1."""
    listener = np.repeat(np.arange(LISTENERS), PLAYS)
    place = np.tile(np.arange(PLAYS), LISTENERS)
    songs = np.char.add("song-", ((listener + place) % SONGS).astype(str))
    columns = {"user_id": listener, "item_id": songs, "timestamp": 1_700_000_000 + 60 * place + listener}
    order = np.random.default_rng(0).permutation(len(listener))
    file = tmp_path_factory.mktemp("plays") / "plays.parquet"
    pq.write_table(pa.table(columns).take(pa.array(order)), file)
    return file


@pytest.mark.parametrize("name", sorted(file.name for file in EXAMPLES.glob("*.py")))
def test_an_example_has_at_most_forty_lines(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) <= 40


def test_a_model_is_trained_on_a_parquet_file_and_lists_the_song_that_follows(plays: Path) -> None:
    headline, *lines = run("train_and_recommend.py", plays, "5")
    assert headline.startswith("80 listeners, 40 songs")
    songs = [line.split()[1] for line in lines]
    assert len(songs) == SONGS - PLAYS  # all that the listener has not heard
    assert songs[0] == f"song-{5 + PLAYS}"


def test_a_model_of_one_s_own_is_compared_with_fuxi_beta(plays: Path) -> None:
    ndcg = {name: float(value) for name, _, value in map(str.split, run("own_model.py", plays))}
    assert set(ndcg) == {"fuxi-beta", "last-song"}
    assert ndcg["last-song"] > 0.8  # here the last song says it all


def test_the_lists_of_a_day_are_read(tmp_path: Path) -> None:
    def row(ds: str, user: int | None, songs: list[int]) -> dict[str, object]:
        items = [{"item_id": song, "score": 1 / song} for song in songs]
        return {"ds": ds, "bucket": 0, "user_id": user, "items": items, "source": "model", "stale_days": 0}

    spec = recommendations_table("int64", "int64")
    rows = [row("2026-03-02", 7, [9]), row("2026-03-03", 7, [3, 1]), row("2026-03-03", None, [2])]
    for each in rows:
        each["ds"] = np.datetime64(str(each["ds"])).item()
    write_deltalake(str(tmp_path), pa.Table.from_pylist(rows, spec.schema), partition_by=list(spec.partition_by))
    listed = [line.split()[:2] for line in run("read_lists.py", tmp_path, "2026-03-03", "7")]
    assert listed == [["1", "3"], ["2", "1"]]
    assert [line.split()[:2] for line in run("read_lists.py", tmp_path, "2026-03-03")] == [["1", "2"]]


def test_the_public_api_is_what_its_types_say() -> None:
    text = Path(str(fuxi_beta.__file__)).read_text()
    typed = {line.split(" as ")[1] for line in text.splitlines() if line.startswith("    from ") and " as " in line}
    assert typed == set(fuxi_beta._HOME)
    for name in typed:
        assert getattr(fuxi_beta, name).__doc__, name
    assert typed <= set(dir(fuxi_beta))
    with pytest.raises(AttributeError, match="no_such_name"):
        fuxi_beta.no_such_name  # noqa: B018


def test_importing_the_package_imports_neither_torch_nor_pyarrow() -> None:
    script = "import sys, fuxi_beta; print(sorted({'torch', 'pyarrow', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
