"""Synthetic logs, two serving days with every real component, and the table read back by another engine."""

import datetime as dt
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobs.config import Config
from jobs.monitoring import prometheus
from jobs.stage_inputs import STAGE_INPUTS, is_declared
from pipelines.histories.shards import read_manifest

from ..conftest import PLANTED
from ..lineage_events import read_events

DAY_ONE, DAY_TWO = dt.date(2026, 1, 26), dt.date(2026, 1, 27)  # of the fixture `two_days`


class SettingsRead:
    """Notes which settings of a configuration this process reads, by stage."""

    def __init__(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: dict[str, set[str]] = {}
        self.counted = config.counted().keys()
        self.stage = ""
        sections = {id(getattr(config, name)): name for name in Config.model_fields}
        for kind in {type(getattr(config, name)) for name in Config.model_fields}:
            if hasattr(kind, "model_fields") or hasattr(kind, "__dataclass_fields__"):
                self._watch(kind, sections, monkeypatch)
        for name in ("hashed", "counted"):  # which read every setting
            monkeypatch.setattr(Config, name, self.during("", getattr(Config, name)))

    def _watch(self, kind: type, sections: dict[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
        plain = kind.__getattribute__

        def noted(section: Any, key: str) -> Any:
            if name := sections.get(id(section)):
                self.keys.setdefault(self.stage, set()).add(f"{name}.{key}")
            return plain(section, key)  # type: ignore[call-arg]

        monkeypatch.setattr(kind, "__getattribute__", noted)

    def during(self, name: str, work: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A function whose reading counts as that of a stage, or of none."""

        def run(argument: Any) -> Any:
            before, self.stage = self.stage, name
            try:
                return work(argument)
            finally:
                self.stage = before

        return run

    def undeclared(self, stage: str) -> list[str]:
        """The settings that decide results, that a stage has read, and that `STAGE_INPUTS` does not know of."""
        spec, read = STAGE_INPUTS[stage], self.keys.get(stage, set()) & self.counted
        return sorted(key for key in read if not is_declared(key, spec.settings + spec.also_reads))


def test_both_days_are_published_without_a_failure(two_days: Any) -> None:
    assert [result.failures for result in two_days.results] == [{}, {}]


@pytest.mark.parametrize("ds", [DAY_ONE, DAY_TWO])
def test_every_active_listener_has_exactly_one_list_of_thirty_unheard_songs(two_days: Any, ds: dt.date) -> None:
    rows = two_days.lists(ds)
    manifest = read_manifest(str(two_days.root / "sequences" / f"ds={ds}"))
    vocabulary = dict(
        two_days.rows_of(f"select item_index, item_id from read_parquet({two_days.live_files('vocabulary')!r})")
    )
    files = [manifest.uri_of(layer) for file in manifest.files for layer in file.layers]
    songs = "select user_id, list_concat(item_index, heard_before) as songs"
    query = f"select user_id, flatten(list(songs)) from ({songs} from read_parquet({files!r})) group by user_id"
    heard = {user: {vocabulary[index] for index in indices} for user, indices in two_days.rows_of(query)}
    assert sorted(heard) == [row[0] for row in rows if row[0] is not None]
    assert sum(row[0] is None for row in rows) == 1
    assert len(heard) > two_days.listeners * 0.8
    for user, items, source, _ in rows:
        assert len(items) == len(set(items)) <= 30
        assert not set(items) & heard.get(user, set()), f"{user} has heard songs of the list"
        assert set(items) <= set(vocabulary.values())
        assert len(items) == 30 or source == "popular" or len(heard[user]) > len(vocabulary) * 0.5


def test_the_hits_of_day_one_are_those_of_the_whole_histories_of_day_two(two_days: Any) -> None:
    request = int(dt.datetime(2026, 1, 26, 8, tzinfo=dt.UTC).timestamp())
    end = int(dt.datetime(2026, 1, 27, tzinfo=dt.UTC).timestamp())
    vocabulary = dict(
        two_days.rows_of(f"select item_index, item_id from read_parquet({two_days.live_files('vocabulary')!r})")
    )
    lists = {user: set(items) for user, items, *_ in two_days.lists(DAY_ONE)}
    manifest = read_manifest(str(two_days.root / "sequences" / f"ds={DAY_TWO}"))
    listened, found, hits = 0, 0, 0
    for row in (row for file in manifest.files for row in manifest.read(file).to_pylist()):
        plays = zip(row["item_index"], row["timestamp"], row["completion"], strict=True)
        played = {vocabulary[song] for song, time, percent in plays if request <= time < end and percent >= 30}
        of_list = played & lists.get(row["user_id"], lists[None])
        listened, found, hits = listened + bool(played), found + bool(of_list), hits + len(of_list)
    assert two_days.config.train.min_completion == 30
    (measured,) = two_days.results[1].stages["hits"]["days"]
    assert (measured["ds"], measured["played"], measured["hits"]) == (str(DAY_ONE), listened, hits)
    assert measured["hr_30"] == pytest.approx(found / listened, abs=1e-6)
    assert hits > 0
    assert two_days.results[0].stages["hits"] == {"days": []}


def test_day_two_leaves_the_partition_of_day_one_as_it_was(two_days: Any) -> None:
    assert two_days.lists(DAY_ONE) == two_days.day_one_before_day_two


def test_day_two_merges_only_the_new_day_and_warm_starts_from_the_first_champion(two_days: Any) -> None:
    first, second = (result.stages for result in two_days.results)
    assert second["sessionize"]["rows_read"] < first["sessionize"]["rows_read"] / 5
    assert read_manifest(str(two_days.root / "sequences" / f"ds={DAY_TWO}")).parent == DAY_ONE
    assert second["train"]["warm_started_from"] == first["promote"]["chosen"]


def test_the_dirt_of_the_logs_is_quarantined_with_reasons(two_days: Any) -> None:
    rejected = two_days.results[0].stages["sessionize"]["rejected"]
    quarantine = str(two_days.root / "quarantine" / f"ds={DAY_ONE}" / "*.parquet")
    stored = dict(two_days.rows_of(f"select reason, count(*) from read_parquet('{quarantine}') group by 1"))
    assert stored == {reason: count for reason, count in rejected.items() if count}
    assert len(stored) >= 4


def test_the_model_beats_popularity(two_days: Any) -> None:
    metrics = two_days.results[0].stages["evaluate"]["metrics"]
    assert metrics["challenger"]["all"]["ndcg_30"] > metrics["popularity"]["all"]["ndcg_30"]


def test_day_one_run_again_after_day_two_gives_the_lists_of_day_one_and_reads_only_declared_settings(
    two_days: Any, ray_local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.daily import run_day, stage_function
    from jobs.day import STAGES, open_day

    read = SettingsRead(two_days.config, monkeypatch)
    stages = {name: read.during(name, stage_function(name)) for name in STAGES}
    run_day(open_day(two_days.config, DAY_ONE, force=True), stages)
    assert two_days.lists(DAY_ONE) == two_days.day_one_before_day_two
    assert {name: read.undeclared(name) for name in STAGES} == {name: [] for name in STAGES}
    assert {"train.epochs", "model.dim"} <= read.keys["train"] and "gates.metric" in read.keys["promote"]


def test_running_a_finished_day_again_does_nothing(two_days: Any) -> None:
    result = two_days.run(DAY_TWO)
    assert all(stage["skipped"] for stage in result.stages.values())


ABSOLUTE = re.compile(
    r"mlflow\.db|\w+/_delta_log/0+\.json|mlartifacts/.*/MLmodel|runs/.*/checkpoints/.*|quarantine/.*\.parquet"
)
"""Files that may name where a workspace was: MLflow's database, which is rewritten; the first commit of a table and
MLflow's note of where a model was, which nobody reads; and files of rejected rows."""


def test_a_workspace_is_moved_and_goes_on_and_nothing_in_it_says_where_it_was(
    two_days: Any, spark: Any, tmp_path: Path
) -> None:
    from jobs.daily import plan
    from jobs.day import open_day, run_stage
    from jobs.registry import versions
    from jobs.stages import sessionize
    from pipelines import storage

    files = [
        file for file in two_days.root.rglob("*") if file.is_file() and not file.is_relative_to(two_days.root / "logs")
    ]
    naming = [file for file in files if str(two_days.root).encode() in file.read_bytes()]
    naming = [file.relative_to(two_days.root).as_posix() for file in naming]
    assert not [name for name in naming if not ABSOLUTE.fullmatch(name)]

    moved = tmp_path / "elsewhere"
    shutil.copytree(two_days.root, moved)
    changed = {"workspace": str(moved)}
    logs = two_days.config.logs.model_copy(
        update={"path": f"{moved}/logs/plays", "catalogue": f"{moved}/logs/catalogue"}
    )
    config = two_days.config.model_copy(update=changed | {"logs": logs})
    hidden = two_days.root.rename(two_days.root.with_name("hidden"))
    try:
        for ds in (DAY_ONE, DAY_TWO):
            assert not [str(stage) for stage in plan(open_day(config, ds)) if stage.runs and stage.name != "maintain"]
        day = open_day(config, DAY_TWO + dt.timedelta(1))
        champion = versions.champion(day)
        assert champion and Path(versions.download_model(day, champion.version)).is_relative_to(moved)
        run_stage(day, "sessionize", sessionize.run)
        assert {file.landing_day for file in day.record.files} == {str(DAY_TWO)}  # the others are known
        manifest = read_manifest(day.workspace.sequences(day.ds))
        inputs = storage.read_table(manifest.uri(manifest.inputs))["uri"].to_pylist()
        assert len(inputs) > 20 and all(uri.startswith("{workspace}/logs/plays/ds=") for uri in inputs)
    finally:
        hidden.rename(two_days.root)


def test_no_file_that_two_days_write_holds_a_secret(two_days: Any) -> None:
    workspace, ray_session = two_days.written
    files = [file for folder in (workspace, ray_session) for file in folder.rglob("*") if file.is_file()]
    assert any(file.is_relative_to(ray_session / "logs") for file in files)
    contents = {str(file): file.read_bytes() for file in files if not file.is_relative_to(workspace / "logs")}
    assert not [(uri, secret) for uri, content in contents.items() for secret in PLANTED if secret.encode() in content]


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (
            "sessionize",
            ["looking into play logs: .* f", "reading play logs: .* rows", "building sequences: 4 of 4"],
        ),
        ("hits", [r"hits of 2026-01-26: \d+ of \d+ listeners"]),
        ("train", [r"train: \d+ of \d+ steps"]),
        ("evaluate", [r"evaluate: \d+ of \d+ listeners"]),
        ("promote", ["promote"]),
        ("recommend", [r"lists: \d+ of \d+ listeners"]),
        ("report", ["report"]),
    ],
)
def test_every_stage_tells_its_progress(two_days: Any, stage: str, expected: list[str]) -> None:
    """A stage that told nothing would be ended as one that stands still (`cluster.stall_minutes`)."""
    told = two_days.told[stage]
    assert all(any(re.match(part, text) for text in told) for part in expected), told


def test_the_report_of_each_day_is_there(two_days: Any) -> None:
    for result in two_days.results:
        assert "<html" in Path(result.stages["report"]["uri"]).read_text()


def test_prometheus_sees_the_newest_day_as_its_stages_returned_it(two_days: Any, tmp_path: Path) -> None:
    prometheus.export_status(two_days.config, f"{tmp_path}/fuxi.prom")
    families = list(text_string_to_metric_families((tmp_path / "fuxi.prom").read_text()))
    found = {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}
    stages = two_days.results[1].stages
    seconds = {key[1]: value for key, value in found.items() if key[0] == "fuxi_stage_duration_seconds"}
    assert seconds == pytest.approx(two_days.results[1].seconds, abs=0.01) and seconds.keys() == stages.keys()
    assert found["fuxi_rows_read",] == stages["sessionize"]["rows_read"] > 0
    rejected = {key[1]: value for key, value in found.items() if key[0] == "fuxi_rows_rejected"}
    assert {reason: value for reason, value in rejected.items() if value} == stages["sessionize"]["rejected"] != {}
    assert found["fuxi_train_loss",] == pytest.approx(stages["train"]["final_loss"])
    measured = stages["evaluate"]["metrics"]["challenger"]["all"]["ndcg_30"]
    assert found["fuxi_metric", "ndcg_30", "challenger"] == pytest.approx(measured)
    assert found["fuxi_served_info", stages["recommend"]["model_version"], "model"] == found["fuxi_day_published",] == 1
    assert found["fuxi_lists",] == stages["recommend"]["listeners"]
    assert found["fuxi_newest_list_day_timestamp_seconds",] == dt.datetime(2026, 1, 27, tzinfo=dt.UTC).timestamp()
    assert len(found) < 500


def test_openlineage_is_told_of_each_stage_of_both_days(two_days: Any) -> None:
    """Rebuilt with its client's own classes, which check times, ids and facets."""
    events = read_events(two_days.lineage)
    told = [(event.job.name, event.eventType.value) for event in events if event.eventType]
    of_a_day = [(name, kind) for name in STAGE_INPUTS for kind in ("START", "COMPLETE")]
    assert told == 2 * [("daily", "START"), *of_a_day, ("daily", "COMPLETE")]
    assert len({event.run.runId for event in events}) == len(events) / 2
    days = [event.run.runId for event in events if event.job.name == "daily"][::2]
    half = len(events) // 2
    for number, (day, ds) in enumerate(zip(days, (DAY_ONE, DAY_TWO), strict=True)):
        for event in events[number * half : (number + 1) * half]:
            facets = event.run.facets or {}
            assert event.job.namespace == "fuxi" and facets["nominalTime"].nominalStartTime == f"{ds}T00:00:00+00:00"
            if event.job.name != "daily":
                assert facets["parent"].run.runId == day and facets["parent"].job.name == "daily"
    [lists] = [e for e in events[half:] if (e.job.name, e.eventType.value) == ("recommend", "COMPLETE")]
    root = str(two_days.root)
    names = [(data.namespace, data.name) for data in lists.outputs]
    assert names == [("file", f"{root}/recommendations"), ("file", f"{root}/list_quality")]
    rows = lists.outputs[0].outputFacets["outputStatistics"].rowCount
    assert rows == two_days.results[1].stages["recommend"]["listeners"]
    read = [data.name for data in lists.inputs]
    assert read == [f"{root}/sequences", f"{root}/logs/catalogue", f"{root}/mlflow.db/models/fuxi-beta-daily"]
    assert {"key": "run_id", "value": read_manifest(f"{root}/sequences/ds={DAY_TWO}").run_id} in [
        {"key": tag.key, "value": tag.value} for tag in lists.run.facets["tags"].tags
    ]
