"""Data sets in the layouts in which they are published, small and made here, become logs that the job reads."""

import bz2
import contextlib
import datetime as dt
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs.commands import import_logs
from jobs.commands import inspect as inspect_job
from jobs.config import load_config
from jobs.day import open_day
from jobs.stages import sessionize
from pipelines import storage
from pipelines.errors import InputError
from pipelines.imports import landing, lines
from pipelines.imports.dataset import Dataset
from pipelines.imports.lastfm_1k import FILE as LASTFM_FILE
from pipelines.imports.lastfm_1k import LastFm1K
from pipelines.imports.lfm_2b import Lfm2b
from pipelines.imports.listenbrainz import ListenBrainz
from pipelines.imports.spotify import Spotify
from pipelines.imports.yambda import Yambda

START = 1_262_304_000  # 2010-01-01 00:00 UTC
DAYS, USERS, SONGS = 9, 12, 30
Play = tuple[Any, Any, int]


def made_plays(count: int = 400) -> list[tuple[int, int, int]]:
    """(user, song, Unix second), by listener as most data sets are, the last one twice."""
    random = np.random.default_rng(7)
    users, songs = random.integers(1, USERS + 1, count), random.integers(1, SONGS + 1, count)
    times = START + random.permutation(DAYS * 86_400)[:count]
    rows = sorted(zip(users.tolist(), songs.tolist(), times.tolist(), strict=True))
    return [*rows, rows[-1]]


def iso(second: int, *, between: str = "T", end: str = "Z") -> str:
    return dt.datetime.fromtimestamp(second, dt.UTC).strftime(f"%Y-%m-%d{between}%H:%M:%S{end}")


def mbid(song: int) -> str:
    return f"00000000-0000-4000-8000-{song:012d}"


def tar_of(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    return content.getvalue()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=100)
    return sink.getvalue().to_pybytes()


def lastfm_lines() -> list[str]:
    """Songs of an even number have no MusicBrainz id, those that divide by 10 no title either."""
    rows = []
    for user, song, time in made_plays():
        title = "" if song % 10 == 0 else f'"Title" {song}'
        cells = (f"user_{user:06d}", iso(time), "", f"Artist {song}", mbid(song) if song % 2 else "", title)
        rows.append("\t".join(cells))
    return rows


def lastfm(folder: Path) -> tuple[Dataset, set[Play]]:
    table = "\n".join(lastfm_lines()).encode() + b"\n"
    content = tar_of({"lastfm-dataset-1K/README.txt": b"...", f"lastfm-dataset-1K/{LASTFM_FILE}": table})
    (folder / "lastfm-dataset-1K.tar.gz").write_bytes(gzip.compress(content))

    def song_id(song: int) -> str:
        return mbid(song) if song % 2 else f'Artist {song} - "Title" {song}'

    return LastFm1K(), {(f"user_{u:06d}", song_id(s), t) for u, s, t in made_plays() if s % 10}


def lfm_2b(folder: Path) -> tuple[Dataset, set[Play]]:
    rows = [f"{u}\t{s}\t{s % 7}\t{iso(t, between=' ', end='')}" for u, s, t in made_plays()]
    events = "\n".join(["user_id\ttrack_id\talbum_id\ttimestamp", *rows])
    (folder / "listening-events.tsv.bz2").write_bytes(bz2.compress(events.encode()))
    songs = [f"{song}\tArtist {song}\tTitle {song}" for song in range(1, SONGS + 1)]
    (folder / "tracks.tsv").write_text("\n".join(["track_id\tartist_name\ttrack_name", *songs]))
    return Lfm2b(), set(made_plays())


def yambda_table() -> pa.Table:
    users, songs, times = (np.array(column) for column in zip(*made_plays(), strict=True))
    return pa.table(
        {
            "uid": pa.array(users, pa.uint32()),
            "timestamp": pa.array(times - START, pa.uint32()),
            "item_id": pa.array(songs, pa.uint32()),
            "is_organic": pa.array(songs % 3 > 0, pa.uint8()),
            "played_ratio_pct": pa.array(songs * 4, pa.uint16()),
            "track_length_seconds": pa.array(songs * 10, pa.uint32()),
        }
    )


def yambda(folder: Path) -> tuple[Dataset, set[Play]]:
    table = yambda_table()
    more = table.slice(0, 20).set_column(1, "timestamp", pa.array(range(20), pa.uint32()))
    types = pa.array(["listen"] * table.num_rows + ["like"] * 20).dictionary_encode()
    table = pa.concat_tables([table, more]).append_column("event_type", types)
    (folder / "multi_event.parquet").write_bytes(parquet(table))
    songs = pa.array([*range(1, SONGS + 1), 1], pa.uint32())
    artists = pa.table({"artist_id": pa.array([song.as_py() % 5 for song in songs], pa.uint32()), "item_id": songs})
    (folder / "artist_item_mapping.parquet").write_bytes(parquet(artists))
    return Yambda(dt.date(2010, 1, 1)), set(made_plays())


def sequential_yambda(folder: Path) -> tuple[Dataset, set[Play]]:
    rows = yambda_table().to_pandas().groupby("uid", as_index=False).agg(list)
    (folder / "listens.parquet").write_bytes(parquet(pa.Table.from_pandas(rows, preserve_index=False)))
    return Yambda(dt.date(2010, 1, 1)), set(made_plays())


def listen(user: int, song: int, time: int) -> dict[str, Any]:
    """Songs of an even number are unknown to MusicBrainz; those that divide by 3 are known by the listener alone."""
    info = {"recording_mbid": mbid(song)} if song % 2 and song % 3 == 0 else {"tags": ["a", 1]}
    track: dict[str, Any] = {"artist_name": f"Artist {song}", "track_name": f"Title {song}", "additional_info": info}
    if song % 2 and song % 3:
        track["mbid_mapping"] = {"recording_mbid": mbid(song), "artist_mbids": []}
    sent = {"user_id": user, "user_name": f"name {user}", "recording_msid": mbid(900 + song), "track_metadata": track}
    return sent | ({"listened_at": time} if song % 5 else {"timestamp": time})


def listenbrainz_plays(plays: list[tuple[int, int, int]]) -> set[Play]:
    return {(user, mbid(song if song % 2 else 900 + song), time) for user, song, time in plays}


def listens_dump(folder: Path, plays: list[tuple[int, int, int]], name: str) -> Path:
    months: dict[str, list[str]] = {}
    for play in sorted(plays, key=lambda play: play[2]):
        month = dt.datetime.fromtimestamp(play[2], dt.UTC)
        months.setdefault(f"{name}/listens/{month.year}/{month.month}.listens", []).append(json.dumps(listen(*play)))
    files = {file: "\n".join([*rows, ""]).encode() for file, rows in months.items()}
    target = folder / f"{name}.tar.zst"
    target.write_bytes(zstd(tar_of({f"{name}/COPYING": b"CC0", f"{name}/TIMESTAMP": b"2010-01-10", **files})))
    return target


def listenbrainz(folder: Path) -> tuple[Dataset, set[Play]]:
    plays = made_plays()
    listens_dump(folder, plays[:300], "listenbrainz-listens-dump-7-20100109-000003-full")
    listens_dump(folder, plays[300:], "listenbrainz-listens-dump-8-20100110-000003-incremental")
    return ListenBrainz(), listenbrainz_plays(plays)


def spark_listenbrainz(folder: Path) -> tuple[Dataset, set[Play]]:
    users, songs, times = zip(*made_plays(), strict=True)
    table = pa.table(
        {
            "listened_at": pa.array(np.array(times) * 1000, pa.timestamp("ms")),
            "created": pa.array(np.array(times) * 1000, pa.timestamp("ms")),
            "user_id": pa.array(users, pa.int64()),
            "recording_msid": [mbid(900 + song) for song in songs],
            "artist_name": [f"Artist {song}" for song in songs],
            "recording_name": [f"Title {song}" for song in songs],
            "recording_mbid": [mbid(song) if song % 2 else None for song in songs],
        }
    )
    name = "listenbrainz-spark-dump-7-20100109-000003-full"
    halves = {f"{name}/{n}.parquet": parquet(table.slice(n * 200, 200 + n)) for n in range(2)}
    (folder / f"{name}.tar").write_bytes(tar_of({f"{name}/COPYING": b"CC0", **halves}))
    return ListenBrainz(), listenbrainz_plays(made_plays())


def streamed(song: int, time: int) -> dict[str, Any]:
    return {
        "ts": iso(time + 60),
        "ip_addr": "203.0.113.7",
        "conn_country": "GB",
        "ms_played": 60_900 if song % 4 else 1_000 * 60,
        "master_metadata_track_name": f"Title {song}",
        "master_metadata_album_artist_name": f"Artist {song}",
        "spotify_track_uri": f"spotify:track:{song:022d}",
        "reason_start": "clickrow",
        "reason_end": "trackdone" if song % 4 else "fwdbtn",
        "shuffle": song % 3 == 0,
    }


def spotify(folder: Path) -> tuple[Dataset, set[Play]]:
    rows = [streamed(song, time) for _, song, time in made_plays()]
    podcast = {**streamed(1, START), "spotify_track_uri": None, "spotify_episode_uri": "spotify:episode:1"}
    inside = "Spotify Extended Streaming History"
    with zipfile.ZipFile(folder / "my_spotify_data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{inside}/ReadMeFirst_ExtendedStreamingHistory.pdf", b"%PDF")
        archive.writestr(f"{inside}/Streaming_History_Video_2010.json", "[]")
        archive.writestr(f"{inside}/Streaming_History_Audio_2010_0.json", json.dumps([podcast, *rows[:250]]))
        archive.writestr(f"{inside}/Streaming_History_Audio_2010_1.json", json.dumps(rows[250:]))
    return Spotify("ann"), {("ann", f"spotify:track:{s:022d}", t) for _, s, t in made_plays()}


DATA_SETS: dict[str, Callable[[Path], tuple[Dataset, set[Play]]]] = {
    "lastfm-1k": lastfm,
    "lfm-2b": lfm_2b,
    "yambda": yambda,
    "yambda, sequential": sequential_yambda,
    "listenbrainz": listenbrainz,
    "listenbrainz, parquet": spark_listenbrainz,
    "spotify": spotify,
}
IGNORED = {"yambda": 20, "spotify": 1}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a data set has several chunks."""
    monkeypatch.setattr(lines, "BLOCK_BYTES", 4096)
    monkeypatch.setattr("pipelines.imports.yambda._BATCH_ROWS", 100)
    monkeypatch.setattr("pipelines.imports.yambda._SEQUENCES", 5)
    monkeypatch.setattr("pipelines.imports.listenbrainz._BATCH_ROWS", 100)


def run(dataset: Dataset, source: Path, out: Path, **options: Any) -> dict[str, Any]:
    return import_logs.run(dataset, [str(source)], str(out), **{"max_rejected_share": 0.25, **options})


def imported(out: Path) -> set[Play]:
    """The plays of a folder; each lies in the folder of its day, once."""
    found: list[Play] = []
    for file in sorted((out / "plays").rglob("*.parquet")):
        table = storage.read_table(str(file))
        day = file.parent.name.removeprefix("ds=")
        assert {iso(time)[:10] for time in table["timestamp"].to_pylist()} == {day}
        found += zip(*(table[name].to_pylist() for name in ("user_id", "item_id", "timestamp")), strict=True)
    assert len(found) == len(set(found))
    return set(found)


def downloaded(tmp_path: Path, name: str) -> tuple[Dataset, set[Play], Path]:
    source = tmp_path / "downloads"
    source.mkdir()
    dataset, plays = DATA_SETS[name](source)
    return dataset, plays, source


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_play_is_landed_once_and_every_row_is_counted(tmp_path: Path, name: str) -> None:
    dataset, plays, source = downloaded(tmp_path, name)
    result = run(dataset, source, tmp_path / "out")
    assert imported(tmp_path / "out") == plays
    rejected, ignored = sum(result["rejected"].values()), IGNORED.get(name, 0)
    assert result["rows_read"] == len(made_plays()) + ignored and result["plays"] == len(plays)
    assert result["rows_read"] == result["plays"] + result["duplicates"] + result["ignored"] + rejected
    assert result["ignored"] == ignored
    assert not (tmp_path / "out" / "staging").exists()


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_configuration_that_is_written_reads_it(tmp_path: Path, name: str) -> None:
    dataset, plays, source = downloaded(tmp_path, name)
    result = run(dataset, source, tmp_path / "out")
    given = inspect_job.given_settings(result["config"], ())
    found = inspect_job.run(given["logs"]["path"], given)
    assert not found.problem and found.trial.accepted == len(plays) and not sum(found.trial.rejected.values())


@pytest.mark.parametrize("name", DATA_SETS)
def test_an_import_that_was_killed_anywhere_goes_on_and_comes_to_the_same(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, _, source = downloaded(tmp_path, name)
    whole = run(dataset, source, tmp_path / "whole")
    write_json, write_table, append = storage.write_json, storage.write_table, landing.Landing._write

    def broken(original: Any, after: int) -> Any:
        left = [after]

        def once(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        return once

    for number in range(7):
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(storage, "write_json", broken(write_json, number))
            patch.setattr(storage, "write_table", broken(write_table, 3 * number))
            patch.setattr(landing.Landing, "_write", broken(append, 5 * number + 2))
            run(dataset, source, tmp_path / "out")
    result = run(dataset, source, tmp_path / "out")
    assert imported(tmp_path / "out") == imported(tmp_path / "whole")
    if "imported" not in result:
        assert {**result, "config": ""} == {**whole, "config": ""}
    assert songs(tmp_path / "out") == songs(tmp_path / "whole")


def songs(out: Path) -> dict[Any, dict[str, Any]]:
    files = sorted((out / "catalogue").glob("*.parquet"))
    rows = [row for file in files for row in storage.read_table(str(file)).to_pylist()]
    assert len({row["item_id"] for row in rows}) == len(rows)
    return {row["item_id"]: row for row in rows}


def test_songs_have_their_names_where_the_data_set_has_them(tmp_path: Path) -> None:
    for name, song, expected in (
        ("lastfm-1k", mbid(1), {"title": '"Title" 1', "artist": "Artist 1"}),
        ("lfm-2b", 2, {"title": "Title 2", "artist": "Artist 2", "artist_id": None}),
        ("yambda", 7, {"artist_id": 2}),
        ("listenbrainz", mbid(902), {"title": "Title 2", "artist": "Artist 2"}),
        ("spotify", f"spotify:track:{3:022d}", {"title": "Title 3", "artist": "Artist 3"}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        dataset, _, source = downloaded(folder, name)
        run(dataset, source, folder / "out")
        found = songs(folder / "out")
        assert found[song] == {"item_id": song, **expected}
        assert len(found) in (SONGS, SONGS - 3)


def test_how_far_and_by_whose_choice_songs_were_played(tmp_path: Path) -> None:
    dataset, _, source = downloaded(tmp_path, "yambda")
    run(dataset, source, tmp_path / "out")
    rows = pa.concat_tables(storage.read_table(str(file)) for file in (tmp_path / "out" / "plays").rglob("*.parquet"))
    for row in rows.to_pylist():
        song = row["item_id"]
        assert (row["duration_ms"], row["play_ms"]) == (song * 10_000, song * 10_000 * song * 4 // 100)
        assert row["play_source"] == ("organic" if song % 3 else "recommended")


def test_of_spotify_nothing_but_what_is_needed_is_kept_and_shuffled_plays_are_told(tmp_path: Path) -> None:
    dataset, _, source = downloaded(tmp_path, "spotify")
    run(dataset, source, tmp_path / "out")
    rows = pa.concat_tables(storage.read_table(str(file)) for file in (tmp_path / "out" / "plays").rglob("*.parquet"))
    for row in rows.to_pylist():
        song = int(row["item_id"][-22:])
        assert row["play_source"] == ("clickrow" if song % 3 else "shuffle")
        assert (row["play_ms"], row["duration_ms"]) == ((60_900, 60_900) if song % 4 else (60_000, None))
    everything = b"".join(file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file())
    assert b"203.0.113" not in everything


def test_incremental_dumps_follow_a_full_one_and_another_full_one_is_refused(tmp_path: Path) -> None:
    plays, out = made_plays(), tmp_path / "out"
    full = listens_dump(tmp_path, plays[:300], "listenbrainz-listens-dump-7-20100109-000003-full")
    later = listens_dump(tmp_path, plays[300:], "listenbrainz-listens-dump-9-20100110-000003-incremental")
    run(ListenBrainz(), full, out)
    assert run(ListenBrainz(), full, out) == {"dataset": "listenbrainz", "imported": "already", "files": 1}
    before = {file: file.read_bytes() for file in (out / "plays").rglob("*.parquet")}
    run(ListenBrainz(), later, out)
    assert imported(out) == listenbrainz_plays(plays)
    assert all(file.read_bytes() == content for file, content in before.items()), (
        "files that were taken in do not change"
    )
    another = listens_dump(tmp_path, plays, "listenbrainz-listens-dump-20-20100201-000003-full")
    with pytest.raises(InputError, match=r"full dumps 20 and 7: a full dump replaces all before it"):
        run(ListenBrainz(), another, out)


def test_whom_a_newer_full_dump_does_not_have_any_more_is_written_down_for_fuxi_forget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plays = made_plays()
    old = listens_dump(tmp_path, plays, "listenbrainz-listens-dump-7-20100109-000003-full")
    new = listens_dump(
        tmp_path, [play for play in plays if play[0] not in (3, 11)], "listenbrainz-listens-dump-9-20100201-000003-full"
    )
    run(ListenBrainz(), old, tmp_path / "old")
    result = run(ListenBrainz(), new, tmp_path / "new", previous=str(tmp_path / "old"))
    assert result["forget"] == 2 and (tmp_path / "new" / "forget.txt").read_text() == "3\n11\n"
    assert (
        f"fuxi forget --file {tmp_path}/new/forget.txt --config {tmp_path}/old/daily.yaml --yes"
        in capsys.readouterr().err
    )


def test_published_numbers_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, _, source = downloaded(tmp_path, "lastfm-1k")
    run(dataset, source, tmp_path / "out")
    said = capsys.readouterr().err
    assert "rows_read 401: DIFFERS from the 19,150,868 published (http://ocelma.net" in said
    assert f"listeners {USERS}: DIFFERS from the 992 published" in said
    assert landing.against_published({"a": 3}, [landing.Published("a", 3, "here")]) == ["a 3: as published (here)"]


BAD_LISTENS = (
    b"{",
    b"[1]",
    b'{"user_id": 1, "listened_at": 1262304000}',
    b'{"user_id": "1", "listened_at": 1262304000, "recording_msid": "a"}',
    b'{"user_id": 1, "listened_at": "soon", "recording_msid": "a"}',
    b'{"user_id": 1, "listened_at": 99999999999, "recording_msid": "a"}',
    b'{"user_id": 1, "listened_at": 1262304000, "recording_msid": "a", "track_metadata": 7}',
    b'{"user_id": 1, "listened_at": 1262304000, "recording_msid": "\\ud83d"}',
    b"\xff\xfe",
)


def test_rows_that_are_no_plays_are_kept_apart_with_their_place_and_the_others_come_through(tmp_path: Path) -> None:
    name = "listenbrainz-listens-dump-7-20100109-000003-full"
    good = [json.dumps(listen(*play)).encode() for play in made_plays()]
    content = b"\n".join([*good[:50], *BAD_LISTENS, *good[50:]])
    (tmp_path / f"{name}.tar.xz").write_bytes(lzma.compress(tar_of({f"{name}/listens/2010/1.listens": content})))
    result = run(ListenBrainz(), tmp_path / f"{name}.tar.xz", tmp_path / "out")
    assert result["rejected"] == {
        "impossible_time": 1,
        "malformed_line": 2,
        "no_value_item_id": 1,
        "no_value_timestamp": 1,
        "no_value_user_id": 1,
        "not_utf8": 1,
    }
    assert listenbrainz_plays(made_plays()) <= imported(tmp_path / "out")
    assert result["plays"] == len(set(made_plays())) + 2, "without names, and with half a character, a play is a play"
    rejected = pa.concat_tables(
        storage.read_table(str(file)) for file in (tmp_path / "out" / "rejected").glob("*.parquet")
    )
    places = [where.rpartition("line ")[2] for where in rejected["source_file"].to_pylist()]
    assert sorted(map(int, places)) == [51, 52, 53, 54, 55, 56, 59]


def test_lines_of_other_cells_are_rejected_alone_and_quotes_mean_nothing(tmp_path: Path) -> None:
    good = lastfm_lines()
    bad = [
        "user_000001",
        "user_000001\t2010-01-01T00:00:00Z\t\tA\t\tB\tC",
        "user_000001\tyesterday\t\tA\t\tB",
        "\t2010-01-01T00:00:00Z\t\tA\t\tB",
        "",
    ]
    text = "\r\n".join([*good[:7], *bad, *good[7:]]).encode() + b'\r\nuser_1\t2010-01-01T00:00:00Z\t\t"A\t\tCaf\xe9'
    (tmp_path / LASTFM_FILE).write_bytes(text)
    result = run(LastFm1K(), tmp_path / LASTFM_FILE, tmp_path / "out")
    without_name = sum(song % 10 == 0 for _, song, _ in made_plays())
    assert result["rejected"] == {
        "malformed_line": 2,
        "no_value_item_id": without_name,
        "no_value_timestamp": 1,
        "no_value_user_id": 1,
        "not_utf8": 1,
    }
    assert result["rows_read"] == len(good) + 5


def test_lists_of_several_lengths_are_rejected(tmp_path: Path) -> None:
    rows = {
        "uid": [1, 2, 3],
        "timestamp": [[1, 2], [3], None],
        "item_id": [[5, 6], [7, 8], [9]],
    }
    (tmp_path / "listens.parquet").write_bytes(parquet(pa.table(rows)))
    result = run(Yambda(), tmp_path, tmp_path / "out", max_rejected_share=0.6)
    assert result["rejected"] == {"lists_of_several_lengths": 2} and result["plays"] == 2


def test_too_many_rows_that_are_no_plays_end_an_import_which_a_wider_bound_finishes(tmp_path: Path) -> None:
    text = "\n".join([*lastfm_lines(), *["no play"] * 400])
    (tmp_path / LASTFM_FILE).write_text(text)
    with pytest.raises(InputError, match=r"rows are no plays .* most as malformed_line: userid-.*line 402.*'no play'"):
        run(LastFm1K(), tmp_path, tmp_path / "out")
    assert run(LastFm1K(), tmp_path, tmp_path / "out", max_rejected_share=0.9)["rejected"]["malformed_line"] == 400


@pytest.mark.parametrize("ending", ["tar.gz", "tar.bz2", "tar.zst", "tar.xz", "tar", "zip"])
def test_a_file_that_is_cut_off_is_one_line_and_the_whole_one_goes_on(tmp_path: Path, ending: str) -> None:
    out = tmp_path / "out"
    if ending == "zip":
        dataset, _, source = downloaded(tmp_path, "spotify")
        file = source / "my_spotify_data.zip"
    else:
        pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd, "tar": bytes}
        name = "listenbrainz-listens-dump-7-20100109-000003-full"
        text = b"\n".join(json.dumps(listen(*play)).encode() for play in made_plays())
        archive = tar_of({f"{name}/listens/2010/1.listens": text})
        dataset, file = ListenBrainz(), tmp_path / f"{name}.{ending}"
        file.write_bytes(pack[ending.rpartition(".")[2]](archive))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(InputError, match=r"is cut off or damaged .*: download it again") as error:
        run(dataset, file, out)
    assert "\n" not in str(error.value)
    file.write_bytes(whole)
    with contextlib.suppress(InputError):
        run(dataset, file, out)


def test_names_within_an_archive_say_nothing_about_where_to_write(tmp_path: Path) -> None:
    name = "listenbrainz-listens-dump-7-20100109-000003-full"
    text = "\n".join(json.dumps(listen(*play)) for play in made_plays()).encode()
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        link = tarfile.TarInfo(f"{name}/listens/2010/2.listens")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for path in ("../../../evil/1.listens", f"{tmp_path}/evil.listens"):
            info = tarfile.TarInfo(path)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    (tmp_path / f"{name}.tar").write_bytes(content.getvalue())
    result = run(ListenBrainz(), tmp_path / f"{name}.tar", tmp_path / "out")
    assert result["rows_read"] == 2 * len(made_plays()) and result["plays"] == len(set(made_plays()))
    assert {file.name for file in tmp_path.iterdir()} == {f"{name}.tar", "out"}
    assert not list(tmp_path.parent.glob("evil*"))


def test_what_does_not_go_together_is_refused_in_one_line(tmp_path: Path) -> None:
    dataset, _, source = downloaded(tmp_path, "yambda")
    out = tmp_path / "out"
    run(dataset, source, out)
    text = tmp_path / LASTFM_FILE
    text.write_text("\n".join(lastfm_lines()))
    wrong = tmp_path / "listens.parquet"
    wrong.write_bytes(parquet(pa.table({"uid": [1], "timestamp": [1]})))
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    header = tmp_path / "listening-events.tsv"
    header.write_text("1\t2\t3\t2010-01-01 00:00:00\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    for expected, call in {
        r"holds yambda \(first-day 2010-01-01\), not lastfm-1k: give a folder": lambda: run(LastFm1K(), text, out),
        r"\(first-day 2010-01-01\), not yambda \(first-day 2020-01-01\)": lambda: run(Yambda(), source, out),
        r"column item_id is missing \(found uid, timestamp\)": lambda: run(Yambda(), wrong, tmp_path / "a"),
        r"holds other files and no import.json": lambda: run(LastFm1K(), text, other),
        r"its first line lacks user_id, track_id, timestamp": lambda: run(Lfm2b(), header, tmp_path / "b"),
        r"holds no file of the data set: give listenbrainz-": lambda: run(ListenBrainz(), empty, tmp_path / "c"),
        r"its name is not that of a dump": lambda: run(ListenBrainz(), text, tmp_path / "d"),
        r"nowhere is not there: give ": lambda: run(LastFm1K(), tmp_path / "nowhere", tmp_path / "e"),
        r"listens.parquet, multi_event.parquet have all the plays of yambda": lambda: import_logs.run(
            Yambda(), [str(source), str(wrong)], str(tmp_path / "f"), max_rejected_share=0.25
        ),
        r"--out s3://b/x: an import is staged on a disk": lambda: import_logs.run(
            LastFm1K(), [str(text)], "s3://b/x", max_rejected_share=0.25
        ),
        r"--previous .*: no data set was imported there": lambda: run(
            LastFm1K(), text, tmp_path / "g", previous=str(empty)
        ),
    }.items():
        with pytest.raises(InputError, match=expected) as error:
            call()
        assert "\n" not in str(error.value)


def test_one_import_at_a_time_goes_into_a_folder(tmp_path: Path) -> None:
    dataset, _, source = downloaded(tmp_path, "lfm-2b")
    land = landing.Landing(str(tmp_path / "out"), dataset)
    with land._alone(), pytest.raises(InputError, match=r"another import into .* is running"):
        run(dataset, source, tmp_path / "out")


def test_an_unfinished_import_is_finished_before_another_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plays, out = made_plays(), tmp_path / "out"
    full = listens_dump(tmp_path, plays[:300], "listenbrainz-listens-dump-7-20100109-000003-full")
    later = listens_dump(tmp_path, plays[300:], "listenbrainz-listens-dump-9-20100110-000003-incremental")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(landing.Landing, "_publish", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        run(ListenBrainz(), full, out)
    with pytest.raises(InputError, match="holds an unfinished import of listenbrainz-listens-dump-7"):
        run(ListenBrainz(), later, out)


def test_the_command_says_what_comes_next(tmp_path: Path) -> None:
    _, _, source = downloaded(tmp_path, "yambda")
    command = [sys.executable, "-m", "jobs.cli", "import", "yambda", str(source), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert f"fuxi daily --ds 2020-01-10 --config {tmp_path}/out/daily.yaml" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "Import of yambda" and "  plays: 400" in lines and not any("{" in line for line in lines)


@pytest.fixture
def lastfm_out(tmp_path: Path) -> Iterator[Path]:
    dataset, _, source = downloaded(tmp_path, "lastfm-1k")
    run(dataset, source, tmp_path / "out")
    yield tmp_path / "out"


def test_plays_that_nobody_chose_are_told_in_the_histories(tmp_path: Path, spark: Any) -> None:
    dataset, _, source = downloaded(tmp_path, "yambda")
    run(dataset, source, tmp_path / "out")
    overrides = ["sequences.buckets=2", "quality.max_age_s=1000000000"]
    day = open_day(
        load_config(str(tmp_path / "out/daily.yaml"), overrides=overrides, environment={}), dt.date(2020, 1, 10)
    )
    sessionize.run(day)
    manifest = day.manifest(day.ds)
    histories = [manifest.histories(file) for file in manifest.files]
    rows = pa.concat_tables(storage.read_table(str(file)) for file in (tmp_path / "out" / "plays").rglob("*.parquet"))
    recommended = pc.sum(pc.equal(rows["play_source"], "recommended")).as_py()
    assert sum(int((~one.chosen).sum()) for one in histories) == recommended > 0
    assert sorted(np.concatenate([one.completion for one in histories]).tolist()) == sorted(
        min(100, (100 * row["play_ms"] + row["duration_ms"] // 2) // row["duration_ms"]) for row in rows.to_pylist()
    )


def test_it_becomes_histories(lastfm_out: Path, spark: Any) -> None:
    overrides = ["sequences.buckets=2", "quality.max_age_s=1000000000"]
    config = load_config(str(lastfm_out / "daily.yaml"), overrides=overrides, environment={})
    day = open_day(config, dt.date(2010, 1, 10))
    result = sessionize.run(day)
    assert result["accepted"] == len(imported(lastfm_out)) and result["listeners"] == USERS
    assert pc.sum(pa.array([result["duplicates"]])).as_py() == 0
