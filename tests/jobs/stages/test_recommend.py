"""Lists from real shards by Ray tasks into a real Delta table, read back by engines that did not write it."""

import datetime as dt
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from deltalake import DeltaTable

from jobs.day import Day, run_stage
from jobs.registry import versions
from jobs.serving import make_lists
from jobs.stages import recommend
from jobs.tables import recommendations as lists
from jobs.tables.audit import audit_quality
from jobs.tables.list_quality import EVERY, OVERLAP, SHORT_SHARE
from pipelines import leases, storage
from pipelines.errors import BusyError, InputError

DAY_ONE, DAY_TWO = dt.date(2026, 3, 2), dt.date(2026, 3, 3)
DAY = 86_400


def serve(made: Any, ds: dt.date, *, seed: int = 1, histories: Any = None, known: int | None = None) -> dict[str, Any]:
    """Sessions, an untrained model and its choice, then the stage under test."""
    made.sessionized(ds, histories)
    made.choose(ds, made.trained(ds, seed=seed, known=known))
    return run_stage(made.day(ds), "recommend", recommend.run)


def read(day: Day) -> list[tuple[Any, ...]]:
    """(bucket, user_id, [item_id], [score], source, model_version, stale_days) of a ds, read by DuckDB."""
    files = [file for file in DeltaTable(day.workspace.recommendations).file_uris() if f"ds={day.ds}" in file]
    query = (
        "select bucket, user_id, [x.item_id for x in items], [x.score for x in items], source, model_version, "
        f"stale_days from read_parquet({files!r}) order by user_id nulls first"
    )
    return duckdb.execute(query).fetchall()


def version(day: Day) -> int:
    return DeltaTable(day.workspace.recommendations).version()


def part_files(day: Day) -> set[str]:
    return {file.uri for file in storage.list_files(f"{day.workspace.recommendations}/ds={day.ds}")}


def test_every_active_listener_has_one_list_of_distinct_unheard_songs(
    deployment: Callable[..., Any], ray_local: Any
) -> None:
    made = deployment()
    result = serve(made, DAY_ONE)
    rows = read(made.day(DAY_ONE))
    assert [row[1] for row in rows] == [None, *sorted(made.histories)]
    songs = {made.item_id(index) for index in range(1, made.songs + 1)}
    for _, user, items, scores, source, model_version, stale_days in rows:
        heard = {made.item_id(song) for song, _, _ in made.histories.get(user, [])}
        assert len(items) == len(set(items)) == 30
        assert set(items) <= songs - heard
        assert scores == sorted(scores, reverse=True)
        expected = ("popular", None, 0) if user is None else ("model", "1", 0)
        assert (source, model_version, stale_days) == expected
    assert (result["listeners"], result["model_lists"], result["popular_lists"]) == (made.listeners, made.listeners, 0)
    assert all(check["passed"] for check in result["audit"])


def test_polars_reads_the_day_as_a_partition_of_type_date(deployment: Callable[..., Any], ray_local: Any) -> None:
    made = deployment()
    serve(made, DAY_ONE)
    table = pl.scan_delta(made.day(DAY_ONE).workspace.recommendations)
    assert table.filter(pl.col("ds") == DAY_ONE).collect().height == made.listeners + 1
    assert table.filter(pl.col("user_id") == 3).collect().height == 1


@pytest.mark.parametrize("hour", [8, 18])
def test_the_pyfunc_gives_the_list_of_the_batch_job(deployment: Callable[..., Any], ray_local: Any, hour: int) -> None:
    import mlflow
    import pandas as pd

    made = deployment(f"serving.request_hour={hour}")
    serve(made, DAY_ONE)
    day = made.day(DAY_ONE)
    rows = {row[1]: row for row in read(day)}
    users = [user for user, events in made.histories.items() if all(event[2] >= 30 for event in events)][:5]
    request = pd.DataFrame(
        {
            "item_ids": [[made.item_id(song) for song, _, _ in made.histories[user]] for user in users],
            "timestamps": [[time for _, time, _ in made.histories[user]] for user in users],
        }
    )
    model, asked_for = mlflow.pyfunc.load_model(versions.model_uri(day, "1")), day.calendar.day_start(DAY_ONE)
    for rows_of_request in (request, request.assign(request_time=asked_for + hour * 3600)):
        answer = model.predict(rows_of_request)
        for user, items, scores in zip(users, answer["items"], answer["scores"], strict=True):
            assert list(items) == rows[user][2]
            np.testing.assert_allclose(list(scores), rows[user][3], atol=1e-6)


def test_listeners_without_usable_history_get_popular_songs_they_have_not_heard(
    deployment: Callable[..., Any], ray_local: Any
) -> None:
    made = deployment("recommend.k=5", "train.min_completion=30")
    start = made.day(DAY_ONE).calendar.day_start(DAY_ONE)
    histories = made.make_histories(DAY_ONE)
    histories[101] = [(1, start - 500, 5), (2, start - 400, 5)]  # only skips
    histories[102] = [(119, start - 300, 100)]  # a song the model does not have
    result = serve(made, DAY_ONE, histories=histories, known=110)
    assert result["popular_lists"] == 2

    plays: dict[int, set[Any]] = {}
    for user, events in histories.items():
        for song, time, completion in events:
            if completion >= 30 and time >= start - 28 * DAY:
                plays.setdefault(song, set()).add(user)
    order = sorted(plays, key=lambda song: (-len(plays[song]), song))
    rows = {row[1]: row for row in read(made.day(DAY_ONE))}
    assert rows[None][2] == [made.item_id(song) for song in order[:5]]
    assert rows[101][2] == [made.item_id(song) for song in order if song not in (1, 2)][:5]
    assert rows[101][4:6] == ("popular", None)
    assert rows[102][2] == [made.item_id(song) for song in order if song != 119][:5]
    assert rows[102][3] == [float(len(plays[song])) for song in order if song != 119][:5]


def test_listeners_not_heard_of_for_active_days_get_no_list(deployment: Callable[..., Any], ray_local: Any) -> None:
    made = deployment("recommend.active_days=30")
    start = made.day(DAY_ONE).calendar.day_start(DAY_ONE)
    histories = made.make_histories(DAY_ONE)
    histories[201] = [(1, start - 30 * DAY, 100)]
    histories[202] = [(1, start - 30 * DAY - 1, 100)]
    serve(made, DAY_ONE, histories=histories)
    users = {row[1] for row in read(made.day(DAY_ONE))}
    assert 201 in users and 202 not in users


def test_string_ids_are_written_as_strings(deployment: Callable[..., Any], ray_local: Any) -> None:
    made = deployment(item_id_type="string", user_id_type="string")
    serve(made, DAY_ONE)
    _, user, items, *_ = read(made.day(DAY_ONE))[1]
    assert user == "user-00001" and all(isinstance(item, str) for item in items)


def test_running_a_day_again_replaces_exactly_that_day_with_the_same_rows(
    deployment: Callable[..., Any], ray_local: Any
) -> None:
    made = deployment()
    serve(made, DAY_ONE)
    serve(made, DAY_TWO, seed=2)
    one, two = read(made.day(DAY_ONE)), read(made.day(DAY_TWO))
    files_of_two = {f for f in DeltaTable(made.day(DAY_TWO).workspace.recommendations).file_uris() if str(DAY_TWO) in f}
    before = version(made.day(DAY_ONE))

    again = made.day(DAY_ONE)
    again.force = True
    result = run_stage(again, "recommend", recommend.run)
    assert version(again) == before + 1 == result["delta_version"]
    assert read(again) == one
    assert read(made.day(DAY_TWO)) == two
    assert files_of_two < set(DeltaTable(again.workspace.recommendations).file_uris())


def test_another_model_chosen_for_a_day_replaces_its_lists(deployment: Callable[..., Any], ray_local: Any) -> None:
    made = deployment()
    serve(made, DAY_ONE)
    one = read(made.day(DAY_ONE))
    made.choose(DAY_ONE, made.trained(DAY_ONE, seed=2))
    recommend.run(made.day(DAY_ONE))
    two = read(made.day(DAY_ONE))
    assert len(two) == len(one) and {row[5] for row in two} == {None, "2"}


def test_a_run_killed_after_its_commit_finds_it_again(deployment: Callable[..., Any], ray_local: Any) -> None:
    made = deployment()
    result = serve(made, DAY_ONE)
    Path(made.day(DAY_ONE).path("recommend.json")).unlink()
    before, files = version(made.day(DAY_ONE)), part_files(made.day(DAY_ONE))
    assert run_stage(made.day(DAY_ONE), "recommend", recommend.run) == result
    assert (version(made.day(DAY_ONE)), part_files(made.day(DAY_ONE))) == (before, files)


def test_a_failed_audit_publishes_nothing_and_leaves_no_files(deployment: Callable[..., Any], ray_local: Any) -> None:
    made = deployment("recommend.max_top_share=0.0")
    made.sessionized(DAY_ONE)
    made.choose(DAY_ONE, made.trained(DAY_ONE))
    with pytest.raises(InputError, match=r"failed the audit, nothing is published: top_song \(") as error:
        run_stage(made.day(DAY_ONE), "recommend", recommend.run)
    assert "\n" not in str(error.value)
    assert lists.published_days(made.day(DAY_ONE).workspace) == []
    assert part_files(made.day(DAY_ONE)) == set()
    assert made.day(DAY_ONE).marker("recommend") is None


def test_far_fewer_listeners_than_yesterday_leave_yesterday_as_it_was(
    deployment: Callable[..., Any], ray_local: Any
) -> None:
    made = deployment()
    serve(made, DAY_ONE)
    one, before = read(made.day(DAY_ONE)), version(made.day(DAY_ONE))
    few = dict(list(made.histories.items())[: made.listeners // 2 - 1])
    with pytest.raises(InputError, match=rf"listeners_kept \(19 listeners, 40 on {DAY_ONE}, at least 20\)"):
        serve(made, DAY_TWO, histories=few)
    assert version(made.day(DAY_ONE)) == before
    assert read(made.day(DAY_ONE)) == one


def test_without_a_model_everybody_has_popular_songs_whatever_the_bounds_of_a_model_s_lists(
    deployment: Callable[..., Any], ray_local: Any
) -> None:
    made = deployment("recommend.max_overlap=0.01", "recommend.max_gini=0.01")
    made.sessionized(DAY_ONE)
    made.choose(DAY_ONE, None)
    result = run_stage(made.day(DAY_ONE), "recommend", recommend.run)
    assert (result["model_lists"], result["popular_lists"]) == (0, made.listeners)
    assert all(check["passed"] for check in result["audit"])
    assert {row[4] for row in read(made.day(DAY_ONE))} == {"popular"}
    config = made.config.recommend.model_copy(update={"max_short_share": 0.1})
    checks = audit_quality({EVERY: {SHORT_SHARE: [0.2, 10], OVERLAP: [0.9, 10]}}, config=config, judged=False)
    assert [(check.check, check.passed) for check in checks] == [(SHORT_SHARE, False)]


@pytest.mark.parametrize("baseline", ["item-knn", "ease", "markov"])
def test_a_baseline_serves_under_the_same_rules_with_its_name_as_the_source(
    deployment: Callable[..., Any], ray_local: Any, baseline: str
) -> None:
    made = deployment("recommend.k=10")
    start = made.day(DAY_ONE).calendar.day_start(DAY_ONE)
    histories = made.make_histories(DAY_ONE)
    histories[101] = [(1, start - 500, 5), (2, start - 400, 5)]  # only skips
    made.sessionized(DAY_ONE, histories)
    made.choose(DAY_ONE, made.trained(DAY_ONE), baseline=baseline)
    result = run_stage(made.day(DAY_ONE), "recommend", recommend.run)
    counts = (result["model_lists"], result["baseline_lists"], result["popular_lists"])
    assert counts == (0, made.listeners, 1)
    assert (result["source"], result["model_version"]) == (baseline, None)
    rows = {row[1]: row for row in read(made.day(DAY_ONE))}
    played = {song for events in histories.values() for song, _, _ in events}
    for user, (_, _, items, scores, source, version, _) in rows.items():
        expected = "popular" if user in (None, 101) else baseline
        assert (source, version) == (expected, None)
        heard = {made.item_id(song) for song, _, _ in histories.get(user, [])}
        assert len(items) == len(set(items)) == 10
        assert set(items) <= {made.item_id(song) for song in played} - heard
        assert scores == sorted(scores, reverse=True)
    assert len({tuple(row[2]) for row in rows.values()}) > made.listeners / 2
    made.choose(DAY_ONE, "1")  # the model serves again: other lists, and another commit
    assert run_stage(made.day(DAY_ONE), "recommend", recommend.run)["source"] == "model"
    assert {row[4] for row in read(made.day(DAY_ONE))} == {"model", "popular"}


def test_popularity_that_is_better_than_the_model_gives_everybody_popular_songs(
    deployment: Callable[..., Any], ray_local: Any
) -> None:
    made = deployment("recommend.max_fallback_share=0.1")
    made.sessionized(DAY_ONE)
    made.choose(DAY_ONE, made.trained(DAY_ONE), baseline="popularity")
    result = run_stage(made.day(DAY_ONE), "recommend", recommend.run)
    assert (result["popular_lists"], result["source"], result["model_version"]) == (made.listeners, "popular", None)


def test_lists_of_a_baseline_do_not_depend_on_how_many_are_made_at_once(
    deployment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = deployment("recommend.k=10")
    made.sessionized(DAY_ONE)
    made.choose(DAY_ONE, None, baseline="item-knn")
    job = recommend.list_job(made.day(DAY_ONE))
    histories = make_lists._active(job, job.manifest.files[0], 0)
    together = list(make_lists._batches(job, histories))
    whole = make_lists._rows(job, 0, histories)
    monkeypatch.setattr(make_lists, "BATCH_SCORES", 3 * (made.songs + 1))  # scores of three listeners
    batches = list(make_lists._batches(job, histories))
    assert len(together) == 1 and {len(batch) for batch in batches} <= {1, 2, 3} and len(batches) > 1
    assert pa.concat_tables([make_lists._rows(job, 0, batch) for batch in batches]).equals(whole)
    assert all(item["reasons"] for row in whole.to_pylist() for item in row["items"][:1])


def test_a_model_with_nan_is_refused_in_one_line(deployment: Callable[..., Any], ray_local: Any) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    made = deployment()
    made.sessionized(DAY_ONE)
    version = made.trained(DAY_ONE)
    file = f"{versions.download_model(made.day(DAY_ONE), version)}/model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    Path(file).with_name("digests.json").unlink()
    Path(file).unlink()  # the loaded tensors may be a map of it
    save_file(tensors | {"item_vectors": torch.full_like(tensors["item_vectors"], torch.nan)}, file)
    made.choose(DAY_ONE, version)
    with pytest.raises(InputError, match=r"model version 1 cannot make lists: a score is not a number") as error:
        run_stage(made.day(DAY_ONE), "recommend", recommend.run)
    assert "\n" not in str(error.value)
    assert part_files(made.day(DAY_ONE)) == set()


def test_a_truncated_shard_is_named_in_one_line(deployment: Callable[..., Any], ray_local: Any) -> None:
    made = deployment()
    manifest = made.sessionized(DAY_ONE)
    made.choose(DAY_ONE, made.trained(DAY_ONE))
    broken = Path(manifest.uri(manifest.files[2].path))
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(InputError, match=r"bucket=00002/part-test.parquet cannot be read") as error:
        run_stage(made.day(DAY_ONE), "recommend", recommend.run)
    assert "\n" not in str(error.value)


def test_stale_sequences_are_marked_in_every_row(deployment: Callable[..., Any], ray_local: Any) -> None:
    made = deployment()
    serve(made, DAY_ONE)
    made.day(DAY_TWO).new_record(parent_sequences=str(DAY_ONE), sequences_ds=str(DAY_ONE))
    made.choose(DAY_TWO, "1")
    run_stage(made.day(DAY_TWO), "recommend", recommend.run)
    assert {row[6] for row in read(made.day(DAY_TWO))} == {1}


def test_before_promote_there_is_no_model_to_recommend_with(deployment: Callable[..., Any]) -> None:
    made = deployment()
    made.sessionized(DAY_ONE)
    with pytest.raises(InputError, match=r"run `fuxi promote --ds 2026-03-02` first"):
        run_stage(made.day(DAY_ONE), "recommend", recommend.run)


def test_a_second_run_of_the_same_day_at_the_same_time_is_refused(deployment: Callable[..., Any]) -> None:
    made = deployment()
    made.sessionized(DAY_ONE)
    lock = storage.join(made.day(DAY_ONE).workspace.run(DAY_ONE), "daily.lock")
    with leases.lease(lock, purpose="the first"), pytest.raises(BusyError, match="held by another run"):
        run_stage(made.day(DAY_ONE), "recommend", recommend.run)


KILLED = """
import os, signal, sys, datetime as dt
from jobs.stages import recommend
from jobs.tables import recommendations as lists
from jobs.tables.audit import audit_quality
from jobs.tables.list_quality import EVERY, OVERLAP, SHORT_SHARE
from jobs.config import load_config
from jobs.day import open_day, run_stage

lists.commit = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
config = load_config(overrides=sys.argv[1:], environment={})
run_stage(open_day(config, dt.date(2026, 3, 3)), "recommend", recommend.run)
"""


def test_a_run_killed_before_its_commit_shows_readers_nothing_and_runs_again(
    deployment: Callable[..., Any], ray_local: Any
) -> None:
    made = deployment()
    serve(made, DAY_ONE)
    one, before = read(made.day(DAY_ONE)), version(made.day(DAY_ONE))
    made.sessionized(DAY_TWO)
    made.choose(DAY_TWO, "1")
    command = [sys.executable, "-c", KILLED, f"workspace={made.config.workspace}", "sequences.buckets=4"]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert len(part_files(made.day(DAY_TWO))) == 5  # four buckets and the default list, written but not published
    assert version(made.day(DAY_ONE)) == before
    assert lists.published_days(made.day(DAY_ONE).workspace) == [DAY_ONE]

    run_stage(made.day(DAY_TWO), "recommend", recommend.run)
    assert len(read(made.day(DAY_TWO))) == made.listeners + 1
    assert read(made.day(DAY_ONE)) == one


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpus_that_are_not_there_are_refused_and_leave_no_files(deployment: Callable[..., Any], ray_local: Any) -> None:
    house = deployment("cluster.recommend_gpus_per_task=1.0")
    with pytest.raises(InputError, match=r"recommend_gpus_per_task asks for 1 GPUs in all, Ray finds 0 on this"):
        serve(house, DAY_ONE)
    assert not part_files(house.day(DAY_ONE))
