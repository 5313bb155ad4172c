"""The day's page: it says what the markers and tables say, whatever is missing, and it is one safe file.

Shards, vocabulary, Delta tables and catalogue are real; the markers hold figures as the stages return them.
"""

import datetime as dt
import html
import json
import math
import re
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fuxi_beta.evaluation.served import HitSums, ServedLists
from jobs.config import load_config
from jobs.daily import run_day
from jobs.day import Day, open_day
from jobs.report.charts import Panel, loss_chart, panel_chart, temporal_chart, trend_chart
from jobs.report.examples import pick_listeners
from jobs.stages.report import run
from jobs.tables import recommendations as lists
from jobs.tables.list_hits import write_list_hits
from jobs.tables.list_quality import write_list_quality
from jobs.tables.metrics import write_metrics
from jobs.tables.quality import write_quality
from pipelines import storage
from pipelines.errors import InputError
from pipelines.histories.shards import read_manifest
from pipelines.logs.quality import BoundCheck, Bounds, DayStats, check_day
from pipelines.logs.validate import QUARANTINE_SCHEMA
from pipelines.schema import CATALOGUE_SCHEMA, recommendations_table

DAY_ONE, DAY_TWO = dt.date(2026, 3, 2), dt.date(2026, 3, 3)
HOSTILE = '<script>alert("1")</script> & <b>Rivers</b>'
SEQUENCES = {
    "rows_read": 48_211,
    "accepted": 46_030,
    "ignored": 1_377,
    "duplicates": 212,
    "rejected": {"null_user_id": 41, "timestamp_too_old": 633, "unknown_event_type": 130},
    "listeners": 3_004,
    "events": 918_233,
    "songs": 5_061,
    "new_songs": 19,
    "eligible_songs": 4_512,
    "files": 8,
}
TRAINING = {
    "model_version": "7",
    "mlflow_run_id": "5f0c2d",
    "epochs": 2,
    "steps": 48,
    "events_per_s": 10_432,
    "seconds_per_epoch": [41.25, 40.5],
    "loss_curve": [[step, 4.9 - 1.4 * step / (step + 12)] for step in range(1, 49)],
    "final_loss": 3.7815,
    "warm_started_from": "6",
    "candidates": 4_512,
    "temporal": [{"layer": 1, "a": 0.214, "b": 0.351}, {"layer": 2, "a": -0.121, "b": 0.702}],
    "parameters": {"model.dim": 50, "train.lr": 0.001},
}
PROMOTION = {
    "chosen": "7",
    "chosen_ds": str(DAY_TWO),
    "alias_moved": True,
    "reason": "the challenger passed every gate",
    "gates": [
        {"gate": "finite", "passed": True, "detail": "5 metrics"},
        {"gate": "beats_popularity", "passed": True, "detail": "ndcg_30 0.0874, popularity 0.0213"},
    ],
}
LISTS = {
    "listeners": 3_001,
    "model_lists": 2_950,
    "popular_lists": 51,
    "coverage": 0.4217,
    "top_share": 0.1234,
    "delta_version": 3,
    "model_version": "7",
    "audit": [{"check": "coverage", "passed": True, "detail": "42.2% of songs, at least 1.0%"}],
}

STATS = DayStats(
    day_start=1772496000,
    rows_read=48_211,
    accepted=46_030,
    ignored=1_377,
    rejected=SEQUENCES["rejected"],
    songs=3_980,
    unknown_plays=301,
    newest=1772496000 - 17 * 60,
    nulls={"user_id": 41, "item_id": 0, "timestamp": 0, "play_ms": 2_410},
    duplicates=212,
    listeners=3_004,
)
USUAL = [{"plays_per_landing_day": plays, "null_share_play_ms": 0.04} for plays in (40_000, 44_000, 46_000)]


def note_quality(day: Day, stats: DayStats = STATS, *, accepted: bool = False) -> list[BoundCheck]:
    """Leave what sessionize leaves in the table, under the default bounds; returns the checks that failed."""
    config = day.config
    bounds = Bounds(max_rejected_share=config.logs.max_rejected_share, **config.quality.model_dump())
    checks = check_day(stats, USUAL, bounds)
    write_quality(day.workspace, day.ds, stats, checks, accepted=accepted)
    return [check for check in checks if not check.passed]


def measured(shift: float = 0.0) -> dict[str, Any]:
    """A result of evaluate; every value differs from every other."""
    base = {"challenger": 0.0874, "champion": 0.0861, "markov": 0.0602, "popularity": 0.0213}
    scale = {"all": 1.0, "new": 0.5, "light": 0.8, "heavy": 1.1}
    factors = {"hr_30": 4, "recall_30": 2, "ndcg_30": 1, "coverage_30": 3, "repeats_30": 0}
    metrics = {
        name: {part: {m: (v + shift) * s * f for m, f in factors.items()} for part, s in scale.items()}
        for name, v in base.items()
    }
    return {
        "protocol": "next_day",
        "listeners": 1_812,
        "excluded": 1_192,
        "request_time": 1772438400,
        "slices": {"all": 1_812, "new": 44, "light": 603, "heavy": 1_209},
        "versions": {"challenger": "7", "champion": "6"},
        "metrics": metrics,
    }


def publish_lists(made: Any, ds: dt.date) -> None:
    """Thirty songs for every listener of the deployment in the real Delta table, and the default list."""
    day = made.day(ds)
    table = lists.open_lists(day.workspace)
    schema = recommendations_table(made.user_id_type, made.item_id_type).schema
    schema = schema.remove(schema.get_field_index("ds"))
    items: list[dict[str, Any]] = [{"item_id": made.item_id(n), "score": 1.0 - n / 100} for n in range(1, 31)]
    plays = [(9, dt.date(2026, 2, 24), 0.2), (8, dt.date(2025, 12, 1), 0.1)]
    items[1]["reasons"] = [{"item_id": made.item_id(n), "ds": played, "weight": pull} for n, played, pull in plays]
    parts = []
    for bucket in (None, *sorted({file.bucket for file in read_manifest(day.workspace.sequences(ds)).files})):
        rows = [
            {
                "bucket": bucket,
                "user_id": user,
                "items": items,
                "source": "model",
                "model_version": "7",
                "stale_days": 0,
            }
            for user in ([None] if bucket is None else users_of(day, bucket))
        ]
        parts.append(lists.write_part(day.workspace.recommendations, ds, pa.Table.from_pylist(rows, schema=schema)))
    lists.commit(table, ds, parts, key=1, metadata={"ds": str(ds)})


def users_of(day: Day, bucket: int) -> list[Any]:
    manifest = read_manifest(day.workspace.sequences(day.ds))
    files = [file for file in manifest.files if file.bucket == bucket]
    return [user for f in files for user in manifest.read(f, None, ["user_id"])["user_id"].to_pylist()]


def write_catalogue(made: Any, path: Path) -> None:
    rows = [
        {"item_id": made.item_id(n), "title": f"Song {n}", "artist_id": n % 7, "artist": f"Artist {n % 7}"}
        for n in range(1, made.songs + 1)
    ]
    rows[0]["title"], rows[0]["artist"] = HOSTILE, "Ørsted & <i>Söhne</i>"
    storage.write_table(str(path / "songs.parquet"), pa.Table.from_pylist(rows, schema=CATALOGUE_SCHEMA))


@pytest.fixture
def both_days(deployment: Callable[..., Any], tmp_path: Path) -> Any:
    """Day one measured, day two whole: shards, lists, metrics, markers and a catalogue with a hostile title."""
    made = deployment(f"logs.catalogue={tmp_path}/catalogue")
    write_catalogue(made, tmp_path / "catalogue")
    for ds in (DAY_ONE, DAY_TWO):
        made.sessionized(ds)
        publish_lists(made, ds)
    earlier = made.day(DAY_ONE)
    write_metrics(
        earlier.workspace,
        DAY_ONE,
        {"6": {"all": {"ndcg_30": 0.0715}}, "markov": {"all": {"ndcg_30": 0.0531}}},
        protocol="next_day",
        listeners={"all": 1_790},
    )
    earlier.finish("sessionize", SEQUENCES | {"listeners": 2_985, "rows_read": 48_000}, 30.0)
    earlier.finish("train", TRAINING | {"model_version": "6"}, 95.5)
    day, found = made.day(DAY_TWO), measured()
    named: dict[str, Any] = {found["versions"].get(name, name): slices for name, slices in found["metrics"].items()}
    write_metrics(day.workspace, DAY_TWO, named, protocol="next_day", listeners=found["slices"])
    day.update_record(chosen_model="7", chosen_reason=PROMOTION["reason"])
    note_quality(earlier, replace(STATS, accepted=41_500, unknown_plays=None))
    note_quality(day)
    results = {"sessionize": SEQUENCES, "train": TRAINING, "evaluate": found, "promote": PROMOTION, "recommend": LISTS}
    for seconds, (name, result) in enumerate(results.items(), start=11):
        day.finish(name, result, float(seconds))
    return made


OF_REFERENCE = {"challenger": 0.982, "champion": 0.961}


def page_of(day: Day) -> str:
    return storage.read_bytes(run(day)["uri"]).decode()


def text_of(page: str) -> str:
    """What a reader sees: no style, no tags, white space as one space."""
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def drop_marker(day: Day, stage: str) -> None:
    Path(day.path(f"{stage}.json")).unlink()


def test_the_page_is_where_the_workspace_says_and_holds_the_figures_of_every_stage(both_days: Any) -> None:
    day = both_days.day(DAY_TWO)
    assert run(day) == {"uri": day.workspace.report(DAY_TWO)}
    text = text_of(page_of(day))
    for figure in (
        "Published with version 7, trained for this day",
        "What came in beside the day before",
        "Rows read 48,211 48,211 0 %",
        "Plays accepted 46,030 41,500 +11 %",
        "Listeners 3,004 2,985 +0.6 %",
        "timestamp too old: older on arrival than logs.max_late_days 633 1.3% 633",
        "Started from the weights of version 6",
        "Events a second 10,432",
        "Seconds an epoch 41.2, 40.5",
        "Challenger , version 7 0.087",
        "Popularity 0.021",
        "beats popularity pass ndcg_30 0.0874, popularity 0.0213",
        "coverage pass 42.2% of songs, at least 1.0%",
        "train 12.0 s 1 min 36 s",
        "layer 1: a 0.214, b 0.351",
        "layer 2: a -0.121, b 0.702",
        "Song 9 Artist 2",
        "because they played Song 9 on Tuesday 24 February and Song 8 on Monday 1 December 2025 0.98",
        "Plays pass 46,030 ≥ 1",
        "Rejected rows pass 1.67% ≤ 25%",
        "Plays per landing day pass 46,030 22,000 to 132,000",
        "Plays of unknown songs pass 0.65% ≤ 50%",
        "Newest play, age pass 17 min ≤ 48.0 h",
        "No user_id pass 0.09% ≤ 20%",
        "No play_ms pass 5% ≤ 29%",
        "Duplicates pass 0.46% ≤ 30%",
        "Input over days the last 2 days judged, refused ones among them",
    ):
        assert figure in text, figure


def measure_hits(day: Day, ds: dt.date, *, listeners: int = 4) -> None:
    """Leave what hits leaves of the lists of `ds`: all but one play the second of three songs and skip the first."""
    rows = np.arange(listeners)
    items = np.stack([rows + 1, rows + 2, rows + 3], axis=1)
    song = np.where(rows == 0, 99, rows + 2)
    propensity = np.where(items == items[:, :1], np.nan, 0.5)
    songs = np.stack([song, items[:, 0]], axis=1).ravel()
    served = ServedLists(items, propensity, rows.repeat(2), songs, np.tile([False, True], listeners))
    sums = HitSums((3,))
    everyone = np.ones(listeners, bool)
    groups = {("all", "all"): everyone, ("all", "model"): rows > 0, ("all", "default"): rows == 0}
    groups |= {("kids", "all"): rows > 1}
    sums.add_lists(groups)
    sums.add(served, groups)
    write_list_hits(day.workspace, ds, sums, measured_ds=ds + dt.timedelta(days=1))


def test_what_the_lists_are_like_by_segment_and_over_days(both_days: Any) -> None:
    day = both_days.day(DAY_TWO)
    figures = {"artists": [19.849, 9], "overlap": [0.1234, 9], "age_days": [1293.5, 9], "gini": [0.5, 9]}
    cuts = {"cut:artist cap": [2.5, 4], "cut:heard": [31.25, 4], "cut:blocked": [0.0, 4]}
    write_list_quality(day.workspace, DAY_ONE, {"all": figures | {"artists": [12.0, 8]}})
    write_list_quality(day.workspace, DAY_TWO, {"all": figures | cuts, "kids": {"artists": [7.0, 2]}})
    page = page_of(day)
    text = text_of(page)
    assert "All lists Segment kids Artists per list 19.85 7.00 Of a list, by its most frequent artist – –" in text
    assert "Of a list, in the listener's list before 12.3% – Days since a song's release, median 1294 –" in text
    assert "mean over 4 listeners; a song counts for the first rule against it All lists Segment kids heard" in text
    assert "heard 31.25 – artist cap 2.50 –" in text and "blocked" not in text
    assert "The songs of a list all lists; the last 2 days counted" in text
    assert "on the last: artists per list 19.8; in the list before, share of a list 12.3%" in page
    found = Elements()
    found.feed(page)
    assert len(found.ids) == len(set(found.ids))


def test_lists_of_an_earlier_release_were_not_counted(both_days: Any) -> None:
    text = text_of(page_of(both_days.day(DAY_TWO)))
    assert "What these lists are like was not counted." in text and "Artists per list" not in text


def test_what_listeners_did_with_the_lists_of_the_day_before(both_days: Any) -> None:
    day = both_days.day(DAY_TWO)
    for days in (1, 2, 9):
        measure_hits(day, DAY_TWO - dt.timedelta(days=days))
    page = page_of(day)
    text = text_of(page)
    assert "On 2026-03-02, from the request time on, 4 listeners played something, and 75.0% of them" in text
    assert "75.0% of all plays were of listed songs" in text
    assert "Of 8 songs listed to explore 37.5% were played, 37.5% by inverse propensity." in text
    assert "HR@3 Recall@3 NDCG@3 Of plays Hits Skips All lists 4 4 0.750 0.750 0.473 75.0% 3 4" in text
    assert "Default list, no list of their own 1 1 0.000 0.000 0.000 0.0% 0 1" in text
    assert "Segment kids 2 2 1.000" in text
    assert "Hits over days all lists; the last 3 days measured" in text
    assert "3 hits, 4 skips at positions 1 to 3; 0 hits at the first" in page
    assert "on the last: listeners with a hit 0.750; recall@3 0.750; plays of listed songs 0.750" in page
    found = Elements()
    found.feed(page)
    assert len(found.ids) == len(set(found.ids))


def test_a_day_without_lists_before_it_says_so_and_shows_the_newest_measured(both_days: Any) -> None:
    assert "No lists were published for the day before." in text_of(page_of(both_days.day(DAY_ONE)))
    day = both_days.day(DAY_TWO)
    assert "The lists of the day before are not measured: none of its plays are there" in text_of(page_of(day))
    measure_hits(day, DAY_ONE - dt.timedelta(days=1))
    assert "The newest lists measured are those of 2026-03-01." in text_of(page_of(day))


def test_hits_of_the_lists_before_that_failed_are_said_at_the_top(both_days: Any) -> None:
    day = both_days.day(DAY_TWO)
    day.note_failure("hits", "list_hits cannot be written")
    top = text_of(page_of(day)).partition("Lists published")[0]
    assert "Published, degraded: version 7 serves" in top
    assert "The stage hits did not finish. List_hits cannot be written." in top


def test_metrics_stand_beside_each_other_in_every_slice(both_days: Any) -> None:
    text = text_of(page_of(both_days.day(DAY_TWO)))
    order = [
        text.index(title)
        for title in ("All listeners (1,812)", "New listeners (44)", "Light listeners", "Heavy listeners")
    ]
    assert order == sorted(order)
    assert "Recommender NDCG@30 Recall@30 HR@30 Coverage@30 Repeats@30 All listeners" in text


def with_differences(found: dict[str, Any], *, width: float) -> dict[str, Any]:
    """The result of evaluate with the difference of each pair, and an interval of that width to each side."""
    pairs = [
        {"metric": "ndcg_30", "slice": part, "of": of, "less": less}
        | {"mean": mean, "low": mean - width, "high": mean + width}
        for part in found["slices"]
        for of, less in combinations(found["metrics"], 2)
        for mean in [found["metrics"][of][part]["ndcg_30"] - found["metrics"][less][part]["ndcg_30"]]
    ]
    return found | {"differences": pairs}


def test_differences_have_their_intervals_and_a_colour_only_where_these_exclude_zero(both_days: Any) -> None:
    day = both_days.day(DAY_TWO)
    assert "Difference" not in text_of(page_of(day)).partition("Metrics at")[0]  # of a release that stored none
    day.finish("evaluate", with_differences(measured(), width=0.01), 1.0)
    page = page_of(day)
    table = page[page.index('aria-label="Metrics"') :]
    text = text_of(table[: table.index("</table>")])
    assert "95 % interval, paired over listeners; coloured where it excludes zero" in text
    assert "Challenger , version 7 0.087 serves" in text
    assert "Champion , version 6 0.086 −0.0013 [−0.0113, +0.0087]" in text
    assert "Markov 0.060 −0.0272 [−0.0372, −0.0172]" in text
    coloured = re.findall(r'<span class="(good|bad|dim)">(?=[+−])([+−][\d.]+)', table)
    assert [(colour, value) for colour, value in coloured[:3]] == [
        ("dim", "−0.0013"),
        ("bad", "−0.0272"),
        ("bad", "−0.0661"),
    ]
    assert ' class="n best"' not in page


@pytest.mark.parametrize("width", [0.001, 0.5])
def test_a_model_below_a_baseline_is_flagged_at_the_top_if_that_is_significant(both_days: Any, width: float) -> None:
    day, found = both_days.day(DAY_TWO), measured()
    found["metrics"]["markov"]["all"]["ndcg_30"] = 0.0974
    day.finish("evaluate", with_differences(found, width=width), 1.0)
    page = page_of(day)
    top, said = text_of(page).partition("Lists published")[0], "The model that serves is below Markov in NDCG@30"
    assert (said in top) == (width < 0.1) == ('class="status held"' in page)
    if width < 0.1:
        assert "by 0.0100, 95 % interval 0.0090 to 0.0110." in top
        assert 'class="mark no">below Markov</span>' in page
    else:
        assert "below Markov, not significantly" in text_of(page)


def test_groups_without_a_listener_are_left_out(both_days: Any) -> None:
    day, found = both_days.day(DAY_TWO), measured()
    found["slices"]["new"] = 0
    day.finish("evaluate", found, 1.0)
    text = text_of(page_of(day))
    assert "Light listeners (603)" in text and "New listeners" not in text


def test_counts_are_compared_with_the_same_weekday_and_never_with_a_first_build_or_a_refused_day(
    both_days: Any,
) -> None:
    day = both_days.day(DAY_TWO)
    for weeks, rows, landing_days in ((1, 40_000, 1), (2, 44_000, 1), (3, 50_000, 1), (4, 9_000_000, 56)):
        stats = replace(STATS, rows_read=rows, accepted=rows - 800, landing_days=landing_days)
        note_quality(both_days.day(DAY_TWO - dt.timedelta(weeks=weeks)), stats)
    refused = both_days.day(DAY_TWO - dt.timedelta(weeks=1))
    assert note_quality(refused, replace(STATS, accepted=20, rows_read=900))
    text = text_of(page_of(day))
    assert "What came in beside the 2 Tuesdays before, median" in text
    assert "Rows read 48,211 47,000 +2.6 %" in text


def quarantined(day: Day, rows: list[tuple[str, str]]) -> None:
    table = [(reason, dt.date(2026, 3, 2), "logs/plays/ds=2026-03-02/p.csv", row) for reason, row in rows]
    columns = [list(column) for column in zip(*table, strict=True)]
    written = pa.table(dict(zip(QUARANTINE_SCHEMA.names, columns, strict=True)), schema=QUARANTINE_SCHEMA)
    storage.write_table(f"{day.workspace.quarantine(day.ds)}/part-0.parquet", written)


def test_a_refused_day_shows_its_rejected_rows_by_reason_with_samples(both_days: Any) -> None:
    ds = DAY_TWO + dt.timedelta(days=1)
    refused = both_days.day(ds)
    assert note_quality(refused, replace(STATS, rejected={"null_item_id": 30_000, "unparseable": 2}, accepted=9_000))
    refused.new_record()
    refused.note_failure("sessionize", "62 % of the rows are rejected")
    rows = [("null_item_id", json.dumps({"user_id": n, "item_id": None, "note": HOSTILE})) for n in (71, 72, 73)]
    quarantined(refused, [*rows, ("unparseable", "a,b,\x1b[2J" + 400 * "x")])
    page = page_of(refused)
    text = text_of(page)
    assert "null item id: no song 30,000 62.2% –" in text
    assert "unparseable: a value that is not of its column's type 2" in text
    assert '"user_id": 71' in text and '"user_id": 72' in text and '"user_id": 73' not in text
    assert "ds=2026-03-02/p.csv" in text
    assert '<pre data-listeners="71">' in page and "<script" not in page.lower()
    assert "\x1b" not in page and "x…" in page and 301 * "x" not in page


def test_the_order_is_lists_their_quality_the_model_and_the_machinery(both_days: Any) -> None:
    page = page_of(both_days.day(DAY_TWO))
    order = re.findall(r'<section id="(\w+)">', page)
    assert order == ["lists", "quality", "hits", "model", "input", "training", "run"]
    assert re.findall(r'<a href="#(\w+)">', page) == order
    first = page[page.index('<section id="lists">') :]
    assert first.index("<h4>List of") < first.index("<h4>Last plays</h4>")


def test_a_page_leads_to_the_index_and_the_days_beside_it(both_days: Any) -> None:
    for ds in (DAY_ONE, DAY_TWO):
        page_of(both_days.day(ds))
    one, two = (storage.read_bytes(both_days.day(ds).workspace.report(ds)).decode() for ds in (DAY_ONE, DAY_TWO))
    index = storage.read_bytes(f"{both_days.config.workspace}/reports/index.html").decode()
    assert f'href="../ds={DAY_ONE}/report.html" rel="prev"' in two and 'rel="prev"' not in one
    assert f'href="../index.html#after-{DAY_ONE}" rel="next"' in one
    row = re.search(rf'<tr id="after-{DAY_ONE}">.*?</tr>', index, re.S)
    assert row and f'href="ds={DAY_TWO}/report.html"' in row[0]  # the day after that page's day
    assert f'id="after-{DAY_TWO}"' not in index


def test_paper_gets_light_colours_whole_tables_and_no_scroll_bars(both_days: Any) -> None:
    style = page_of(both_days.day(DAY_TWO)).partition("<style>")[2].partition("</style>")[0]
    screen, _, printed = style.partition("@media print {")
    dark = screen.partition("@media (prefers-color-scheme: dark)")[2]
    names = set(re.findall(r"(--[\w-]+):", dark))
    assert names == set(re.findall(r"(--[\w-]+):", printed)) == set(re.findall(r"(--[\w-]+):", screen))
    assert re.search(r"--page: #ffffff", printed) and "color-scheme: light" in printed
    assert ".scroll { overflow: visible" in printed and "tr, figure" in printed
    assert "thead { display: table-header-group; }" in printed and "details::details-content" in printed
    assert ".scroll { overflow-x: auto" in screen


def test_the_baselines_that_were_measured_stand_at_the_top_whichever_they_are(both_days: Any) -> None:
    day, found = both_days.day(DAY_TWO), measured()
    assert "NDCG@30 of what serves 0.087 champion 0.086, Markov 0.060, popularity 0.021" in text_of(page_of(day))
    found["metrics"]["item-knn"] = found["metrics"].pop("markov")
    del found["metrics"]["champion"]
    day.finish("evaluate", found, 1.0)
    assert "NDCG@30 of what serves 0.087 Item-kNN 0.060, popularity 0.021" in text_of(page_of(day))


def test_metrics_at_many_cut_offs_are_folded(both_days: Any) -> None:
    day, found = both_days.day(DAY_TWO), measured()
    for slices in found["metrics"].values():
        for values in slices.values():
            values |= {"ndcg_10": 0.5, "hr_10": 0.5, "ndcg_50": 0.5, "hr_50": 0.5}
    day.finish("evaluate", found, 1.0)
    page = page_of(day)
    shown, folded = page.split("<summary>Metrics at other cut-offs</summary>")
    assert "NDCG@10" not in shown
    table = folded[: folded.index("</details>")]
    assert re.findall(r'class="n">([A-Z]\w+@\d+)</th>', table) == ["NDCG@10", "NDCG@50", "HR@10", "HR@50"]


def test_the_trend_knows_which_version_was_the_challenger_of_its_day(both_days: Any) -> None:
    from jobs.report.content import metric_trend

    trend = metric_trend(both_days.day(DAY_TWO), metric="ndcg_30", protocol="next_day")
    assert trend["challenger"] == {DAY_ONE: 0.0715, DAY_TWO: 0.0874}  # version 6 was day one's challenger
    assert trend["champion"] == {DAY_TWO: 0.0861}
    assert trend["markov"] == {DAY_ONE: 0.0531, DAY_TWO: 0.0602}
    assert metric_trend(both_days.day(DAY_ONE), metric="ndcg_30", protocol="next_day")["challenger"] == {
        DAY_ONE: 0.0715
    }


def test_the_three_listeners_are_a_light_a_middle_and_a_heavy_one_with_a_list(both_days: Any) -> None:
    day = both_days.day(DAY_TWO)
    picked = pick_listeners(day)
    assert picked == pick_listeners(day)
    first = users_of(day, 0)
    plays = sorted(len(both_days.histories[user]) for user in first)
    assert [band for band, _, _ in picked] == ["light", "middle", "heavy"]
    assert [events for _, _, events in picked] == [plays[round(share * (len(plays) - 1))] for share in (0.1, 0.5, 0.9)]
    assert all(user in first and len(both_days.histories[user]) == events for _, user, events in picked)


def test_titles_from_the_logs_are_text_and_never_markup(both_days: Any) -> None:
    page = page_of(both_days.day(DAY_TWO))
    assert "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt; &amp; &lt;b&gt;Rivers&lt;/b&gt;" in page
    assert "Ørsted &amp; &lt;i&gt;Söhne&lt;/i&gt;" in page
    assert "<script" not in page.lower()


def test_reasons_and_failures_from_outside_are_text_and_never_markup(both_days: Any) -> None:
    day = both_days.day(DAY_TWO)
    day.finish("sessionize", SEQUENCES | {"rejected": {"<img src=x>": 3}}, 1.0)
    drop_marker(day, "evaluate")
    day.note_failure("evaluate", "RuntimeError: <iframe>")
    page = page_of(day)
    assert "<img" not in page
    assert "<iframe" not in page
    assert "RuntimeError: <iframe>." in text_of(page)


class Elements(HTMLParser):
    """Tags that stay open, ids, headings and outward references of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.headings: list[int] = []
        self.references: list[str] = []
        self.tables_without_caption = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "link", "img", "input", "hr"):
            self.open.append(tag)
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.references += [value or "" for key, value in attrs if key in ("href", "src", "srcset", "data", "action")]
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []
        self.tables_without_caption += (tag == "table") - (tag == "caption")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_well_formed_file_that_loads_nothing(both_days: Any) -> None:
    page = page_of(both_days.day(DAY_TWO))
    found = Elements()
    found.feed(page)
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", page)
    outward = [ref for ref in found.references if not ref.startswith("#")]
    assert outward == ["../index.html", f"../index.html#after-{DAY_TWO}"]
    assert all(ref[1:] in found.ids for ref in found.references if ref.startswith("#"))


def test_the_page_can_be_read_by_a_screen_reader(both_days: Any) -> None:
    page = page_of(both_days.day(DAY_TWO))
    found = Elements()
    found.feed(page)
    assert '<html lang="en">' in page
    assert found.headings[0] == 1
    assert all(deeper <= level + 1 for level, deeper in zip(found.headings, found.headings[1:], strict=False))
    assert found.tables_without_caption == 0
    assert all(re.search(r'scope="(col|row|rowgroup)"', head) for head in re.findall(r"<th\b[^>]*>", page))
    assert "Training loss from" in page


def test_charts_are_well_formed_and_take_their_colours_from_the_page(both_days: Any) -> None:
    page = page_of(both_days.day(DAY_TWO))
    charts = re.findall(r"<svg.*?</svg>", page, flags=re.S)
    assert len(charts) == 4
    for chart in charts:
        root = ET.fromstring(chart)
        assert root.attrib["role"] == "img"
        assert len(root.attrib["aria-label"]) > 20
        assert root.attrib["viewBox"]
        assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r'(href="|url\()#[\w-]+', "", chart))
        assert "var(--s1)" in chart


def test_writing_a_page_again_gives_the_same_bytes(both_days: Any) -> None:
    day = both_days.day(DAY_TWO)
    first = page_of(day)
    time.sleep(1.1)  # a second further on, any time of writing would show
    assert page_of(both_days.day(DAY_TWO)) == first
    day.finish("report", {"uri": "x"}, 1.0)
    assert page_of(both_days.day(DAY_TWO)) == first


def test_a_day_whose_training_failed_says_so_at_the_top_with_the_reason(both_days: Any) -> None:
    day = both_days.day(DAY_TWO)
    for stage in ("train", "evaluate"):
        drop_marker(day, stage)
    day.note_failure("train", "RuntimeError: out of memory")
    reason = "training did not finish; version 6 of 2026-03-02 serves"
    day.update_record(chosen_model="6", chosen_reason=reason)
    day.finish("promote", PROMOTION | {"chosen": "6", "gates": [], "alias_moved": False, "reason": reason}, 1.0)
    text = text_of(page_of(day))
    top = text[: text.index("Lists published")]
    assert "Published, degraded: version 6 serves" in top
    assert "The stage train did not finish. RuntimeError: out of memory." in top
    assert "Evaluation was skipped" in top
    assert "No model was trained for this day" in text
    assert "not measured" in text
    assert "train not finished" in text


def test_a_challenger_that_failed_a_gate_is_held_back_not_degraded(both_days: Any) -> None:
    day = both_days.day(DAY_TWO)
    gates = [{"gate": "near_champion", "passed": False, "detail": "0.0500, at least 0.0818"}]
    reason = "the challenger failed: near_champion; version 6 of 2026-03-02 serves"
    day.update_record(chosen_model="6", chosen_reason=reason)
    day.finish("promote", PROMOTION | {"chosen": "6", "gates": gates, "alias_moved": False, "reason": reason}, 1.0)
    text = text_of(page_of(day))
    top = text[: text.index("Lists published")]
    assert "Published with version 6: the challenger was held back" in top
    assert "The challenger failed: near_champion; version 6 of 2026-03-02 serves." in top
    assert "near champion fail 0.0500, at least 0.0818" in text


def test_a_day_without_any_model_is_degraded(both_days: Any) -> None:
    day = both_days.day(DAY_TWO)
    reason = "the challenger failed: beats_popularity; there is no champion to serve instead"
    day.update_record(chosen_model=None, chosen_reason=reason)
    day.finish("promote", {"chosen": None, "chosen_ds": None, "alias_moved": False, "reason": reason, "gates": []}, 1.0)
    text = text_of(page_of(day))
    assert "Published, degraded: popular songs for everyone, no model serves" in text
    assert "there is no champion to serve instead." in text


def test_a_day_served_by_a_baseline_names_it_and_why(both_days: Any) -> None:
    day = both_days.day(DAY_TWO)
    reason = "the challenger passed every gate; lists of Item-kNN serve until the model is better: ndcg_30 0.0200 above"
    day.update_record(chosen_model="7", chosen_baseline="item-knn", chosen_reason=reason)
    day.finish("promote", PROMOTION | {"baseline": "item-knn", "reason": reason}, 1.0)
    served = {"source": "item-knn", "model_lists": 0, "baseline_lists": 2_900, "model_version": None}
    day.finish("recommend", LISTS | served, 1.0)
    page = page_of(day)
    text = text_of(page)
    top = text[: text.index("Lists published")]
    assert "Published with lists of Item-kNN, in place of version 7" in top
    assert "The challenger passed every gate; lists of Item-kNN serve until the model is better" in top
    assert 'class="status held"' in page
    assert "2,900 from Item-kNN" in text
    assert "Baseline that serves Item-kNN in place of version 7, trained for" in text
    day.update_record(chosen_model=None, chosen_baseline="ease")
    assert "Published, degraded: lists of EASE for everyone, no model serves" in text_of(page_of(day))


def test_the_gap_to_the_last_full_retrain_is_drawn_over_days(both_days: Any) -> None:
    day, found = both_days.day(DAY_TWO), measured()
    assert "share of the last full retrain" not in text_of(page_of(day))
    found["versions"]["reference"] = "3"
    found["metrics"]["reference"] = found["metrics"]["champion"]
    day.finish("evaluate", found, 1.0)
    day.update_record(full_retrain="the last full retrain is of 2026-02-01, train.full_every_days is 28")
    day.finish("train", TRAINING | {"warm_started_from": None}, 1.0)
    rows = {found["versions"][name]: {"all": {"ndcg_30_of_reference": share}} for name, share in OF_REFERENCE.items()}
    write_metrics(day.workspace, DAY_TWO, rows, protocol="next_day", listeners={"all": 1})
    page = page_of(day)
    text = text_of(page)
    assert "NDCG@30 as a share of the last full retrain" in text
    assert "a challenger below 0.95 is refused" in text
    assert f"on the last: Challenger {OF_REFERENCE['challenger']:.3f}; Champion {OF_REFERENCE['champion']:.3f}" in page
    assert "Last full retrain" in text
    assert "Started from nothing: the last full retrain is of 2026-02-01, train.full_every_days is 28." in text


def test_a_day_served_from_older_sequences_says_how_old_they_are_and_why(deployment: Callable[..., Any]) -> None:
    made = deployment()
    made.sessionized(DAY_ONE)
    stale = made.day(DAY_TWO)
    stale.new_record(sequences_ds=str(DAY_ONE), parent_sequences=str(DAY_ONE))
    stale.note_failure("sessionize", "logs/ds=2026-03-02 has no files: wait for it")
    stale.update_record(chosen_model="6", chosen_reason="training did not finish; version 6 of 2026-03-02 serves")
    stale.finish("promote", PROMOTION | {"chosen": "6", "gates": []}, 1.0)
    stale.finish("recommend", LISTS, 1.0)
    publish_lists(made, DAY_ONE)
    text = text_of(page_of(stale))
    top = text[: text.index("Lists published")]
    assert "Published, degraded" in top
    assert "the sequences of 2026-03-02 serve, 1 day old" in top
    assert "Logs/ds=2026-03-02 has no files: wait for it." in top
    assert "Training and evaluation were skipped" in top
    assert "from sequences 1 day old" in text
    assert "No input was read for this day" in text
    assert "Not shown:" in text  # the lists' table has no partition of this day


def test_a_refused_day_shows_the_numbers_that_broke_it_among_the_days_before(both_days: Any) -> None:
    ds = DAY_TWO + dt.timedelta(days=1)
    stale = both_days.day(ds)
    broken = note_quality(stale, replace(STATS, accepted=9_000, unknown_plays=8_100, duplicates=None))
    assert [check.name for check in broken] == ["plays_per_landing_day", "unknown_song_share"]
    stale.new_record(sequences_ds=str(DAY_TWO), parent_sequences=str(DAY_TWO), chosen_model="7")
    stale.note_failure("sessionize", f"ds {ds}: {broken[0].detail}; correct the logs")
    stale.finish("promote", PROMOTION, 1.0)
    stale.finish("recommend", LISTS, 1.0)
    page = page_of(stale)
    text = text_of(page)
    assert f"Ds {ds}: 9,000 plays a landing day, 0.20 of 44,000" in text[: text.index("Lists published")]
    assert "The input was refused: what it held, and what was expected of it." in text
    assert "No input was read for this day" not in text
    assert "Plays that came in 9,000 of 48,211 rows, refused" in text
    assert "Plays per landing day fail 9,000 22,000 to 132,000" in text
    assert "Plays of unknown songs fail 90% ≤ 50%" in text
    assert "Duplicates pass" not in text
    assert "Input over days the last 3 days judged" in text
    assert "beyond its bound" in text
    assert (
        f"3 days from {DAY_ONE} to {ds}; on the last: plays per landing day 9,000; rejected, share of rows 1.67%"
        in page
    )


def test_input_that_was_accepted_in_spite_of_its_bounds_is_said_at_the_top(both_days: Any) -> None:
    day = both_days.day(DAY_TWO)
    broken = note_quality(day, replace(STATS, newest=STATS.day_start - 200_000), accepted=True)
    day.finish("sessionize", SEQUENCES | {"accepted_quality": [check.detail for check in broken]}, 1.0)
    page = page_of(day)
    text = text_of(page)
    top = text[: text.index("Lists published")]
    assert "Published with version 7, from input that broke its bounds" in top
    assert "The input broke its bounds and was taken with --accept-quality: the newest play is 55.6 h older" in top
    assert "Newest play, age accepted 55.6 h ≤ 48.0 h" in text
    assert 'class="status held"' in page


def test_a_first_day_s_input_is_shown_without_what_could_not_be_judged(deployment: Callable[..., Any]) -> None:
    day = deployment().day(DAY_ONE)
    day.new_record()
    config = day.config
    bounds = Bounds(max_rejected_share=config.logs.max_rejected_share, **config.quality.model_dump())
    stats = replace(STATS, accepted=56 * 44_000, landing_days=56, unknown_plays=None)
    write_quality(day.workspace, day.ds, stats, check_day(stats, [], bounds), accepted=False)
    text = text_of(page_of(day))
    assert "Plays per landing day not judged 44,000 –" in text
    assert "No play_ms not judged 5% –" in text
    assert "unknown songs" not in text
    assert "Input over days the first day judged" in text


def test_a_day_of_which_only_the_record_is_there_gets_a_page(deployment: Callable[..., Any]) -> None:
    day = deployment().day(DAY_ONE)
    day.new_record()
    text = text_of(page_of(day))
    assert "Nothing is published for 2026-03-02" in text
    assert "The stage sessionize did not finish." in text
    assert "The stage recommend did not finish." in text


def test_a_day_that_was_never_run_is_one_line(deployment: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"run `fuxi sessionize --ds 2026-03-02` first"):
        run(deployment().day(DAY_ONE))


def test_numbers_that_are_none_or_not_finite_do_not_break_the_page(both_days: Any) -> None:
    day, found = both_days.day(DAY_TWO), measured()
    found["metrics"]["challenger"]["all"]["ndcg_30"] = math.nan
    found["metrics"]["champion"]["new"] = {}
    day.finish("evaluate", found, 1.0)
    day.finish("train", TRAINING | {"loss_curve": [[1, math.nan]], "temporal": [], "final_loss": math.inf}, 1.0)
    text = text_of(page_of(day))
    assert "Challenger , version 7 – " in text
    assert "Final loss –" in text
    assert "nan" not in text


def test_another_protocol_with_other_metrics_has_its_own_headline(both_days: Any) -> None:
    day, found = both_days.day(DAY_TWO), measured()
    found |= {"protocol": "leave_one_out", "metrics": {"challenger": {"all": {"mrr": 0.175, "ndcg_10": 0.202}}}}
    day.finish("evaluate", found, 1.0)
    text = text_of(page_of(day))
    assert "NDCG@10 of what serves 0.202" in text
    assert "Recommender NDCG@10 MRR" in text


def test_the_page_is_written_on_s3(s3: str) -> None:
    day = open_day(load_config(overrides=[f"workspace={s3}/w", "sequences.buckets=4"], environment={}), DAY_ONE)
    day.new_record(chosen_model="7", chosen_reason="the challenger passed every gate")
    found = measured()
    write_metrics(day.workspace, DAY_ONE, {"7": found["metrics"]["challenger"]}, protocol="next_day", listeners={})
    day.finish("train", TRAINING, 9.0)
    day.finish("evaluate", found, 9.0)
    page = page_of(day)
    assert run(day)["uri"] == f"{s3}/w/reports/ds={DAY_ONE}/report.html"
    assert "NDCG@30 over days" in page
    assert "0.087" in text_of(page)


def test_charts_leave_out_what_is_no_number() -> None:
    assert loss_chart([[1, math.nan]]) is None
    assert loss_chart([]) is None
    assert temporal_chart([]) is None
    assert trend_chart({"markov": {DAY_ONE: math.nan}}, labels={"markov": "Markov"}) is None
    assert panel_chart([Panel("plays", {}, {}, {})]) is None
    drawn = loss_chart([[1, 5.0], [2, math.inf], [3, 4.0]])
    assert drawn is not None
    assert "from 5.000 at step 1 to 4.000 at step 3" in drawn.svg


def test_the_temporal_curve_runs_from_a_second_to_a_year_on_a_log_axis() -> None:
    drawn = temporal_chart([{"layer": 1, "a": 0.2, "b": 0.5}])
    assert drawn is not None
    ticks = re.findall(r">(1 (?:s|min|h|d|w|y))<", drawn.svg)
    assert ticks == ["1 s", "1 min", "1 h", "1 d", "1 w", "1 y"]
    points = re.findall(r"[ML] ([\d.]+) ([\d.]+)", max(re.findall(r'd="([^"]+)"', drawn.svg), key=len))
    xs, ys = zip(*((float(x), float(y)) for x, y in points), strict=True)
    # Half way along a log axis x is sqrt(a year); the curve is there where 0.2 (1 + x)^-0.5 says between its ends.
    middle = min(range(len(xs)), key=lambda n: abs(xs[n] - (xs[0] + xs[-1]) / 2))
    start, half, end = (0.2 * (1 + x) ** -0.5 for x in (1, math.sqrt(365 * 86_400), 365 * 86_400))
    expected = (half - end) / (start - end)
    assert (ys[-1] - ys[middle]) / (ys[-1] - ys[0]) == pytest.approx(expected, abs=0.01)


def test_the_reason_of_a_failed_stage_outlives_the_process_until_the_stage_finishes(
    deployment: Callable[..., Any],
) -> None:
    made = deployment()
    made.sessionized(DAY_ONE)

    def fail(_: Day) -> dict[str, Any]:
        raise RuntimeError("out of memory")

    run_day(made.day(DAY_ONE), {"train": fail})
    assert made.day(DAY_ONE).failure("train") == "RuntimeError: out of memory"
    run_day(made.day(DAY_ONE), {"train": lambda _: TRAINING})
    assert made.day(DAY_ONE).failure("train") is None


def test_the_index_names_every_day_with_a_page_and_what_serves_it(both_days: Any) -> None:
    for ds in (DAY_ONE, DAY_TWO):
        run(both_days.day(ds))
    index = Path(both_days.config.workspace, "reports", "index.html")
    page = text_of(index.read_text())
    assert page.index(str(DAY_TWO)) < page.index(str(DAY_ONE)) and "2 days with a page" in page
    links = re.findall(r'href="(ds=[^"]+)"', index.read_text())
    assert links and all((index.parent / link).is_file() for link in links)
    assert 'href="../index.html"' in page_of(both_days.day(DAY_TWO))
    (index.parent / "index.json").unlink()  # of an earlier release, or of two days at once: made from the markers
    run(both_days.day(DAY_ONE))
    assert text_of(index.read_text()) == page
