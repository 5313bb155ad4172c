"""`fuxi inspect`: the configuration that it writes reads the logs as its screen said."""

import datetime as dt
import gzip
import json
import random
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from deltalake import write_deltalake

from jobs.cli import cli
from jobs.commands import inspect
from jobs.config import load_config
from pipelines import storage
from pipelines.errors import InputError
from pipelines.logs import files as logs
from pipelines.logs.validate import IGNORED, REASONS, VALID, ValidationRules, validate

DAYS = [dt.date(2026, 2, 27) + dt.timedelta(n) for n in range(4)]
AFTER = dt.date(2026, 3, 5)


def plays(day, rows=60):
    """(listener, song, Unix seconds) of a landing day."""
    noon = int(dt.datetime(day.year, day.month, day.day, 12, tzinfo=dt.UTC).timestamp())
    return [(1 + n % 9, 100 + n % 31, noon + 60 * n) for n in range(rows)]


def iso(second):
    return dt.datetime.fromtimestamp(second, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def by_day(root, name, content, folder="ds={day}"):
    for day in DAYS:
        file = root / folder.format(day=day, d=day) / name
        file.parent.mkdir(parents=True)
        file.write_bytes(content(plays(day)))


def lines(rows):
    return "".join(f"{line}\n" for line in rows).encode()


def tabs(root):
    def content(rows):
        body = [f"00{u}\t{iso(t)}\tsong {s}\t{'listen' if n % 5 else 'pause'}" for n, (u, s, t) in enumerate(rows)]
        return lines(["Listener\tplayed_at\ttrack\taction", *body])

    by_day(root, "plays.tsv", content)


def nested(root):
    def content(rows):
        events = [{"who": {"user_id": u}, "track": {"id": f"s{s}"}, "ts": iso(t), "n": None} for u, s, t in rows]
        return lines(map(json.dumps, events))

    by_day(root, "part.json.gz", lambda rows: gzip.compress(content(rows)))


def arrays(root):
    def content(rows):
        entries = [
            {"ts": iso(t), "username": f"l{u}", "ms_played": 1000, "spotify_track_uri": f"t:{s}" if n % 6 else None}
            for n, (u, s, t) in enumerate(rows)
        ]
        return json.dumps(entries).encode()

    by_day(root, "history.json", content)


def milliseconds(root):
    def content(rows):
        users, songs, times = zip(*rows, strict=True)
        sink = pa.BufferOutputStream()
        table = pa.table({"uid": users, "track_id": songs, "listened_at": [t * 1000 for t in times]})
        pq.write_table(table, sink)
        return sink.getvalue().to_pybytes()

    by_day(root, "a.parquet", content, "year={d.year}/month={d.month:02}/day={d.day:02}")


def no_header(root):
    by_day(root, "plays.csv", lambda rows: lines(f"{u},{s},{t}" for u, s, t in rows), "dt={day}")


def quotes(root):
    def content(rows):
        return lines(["user_id;title;item_id;timestamp", *(f'{u};"say \\"hi\\"; he";{s};{t}' for u, s, t in rows)])

    by_day(root, "plays.csv", content)


def no_names(root):
    def content(rows):
        return lines(json.dumps({"user": u, "song": s, "time": t * 1000, "event": "like"}) for u, s, t in rows[:20]) + (
            lines(json.dumps({"user": u, "song": s, "time": t * 1000, "event": "play"}) for u, s, t in rows)
        )

    by_day(root, "firehose-1", content)


def delta(root):
    for day in DAYS:
        users, songs, times = zip(*plays(day), strict=True)
        table = pa.table({"listener": users, "song_id": songs, "timestamp": times, "landed": [day] * len(users)})
        write_deltalake(str(root), table, partition_by=["landed"], mode="append")


def _outcome(code):
    return REASONS[code] if code >= 0 else {VALID: "plays", IGNORED: "ignored"}[code]


def read_all(config):
    """Rows, plays, other events and rejected rows of all logs, as the job reads them."""
    types = {name: getattr(config.sequences, name) for name in ("user_id_type", "item_id_type")}
    spec = config.logs.spec(**types)
    rules = ValidationRules(config.logs.play_events, config.logs.other_events, config.logs.max_late_days)
    counts: Counter[str] = Counter()
    for split in logs.plan(spec, logs.discover(spec, before=AFTER)):
        for batch in logs.read(spec, split):
            codes = validate(batch, rules, dt.date.fromisoformat(split.file.landing_day))
            counts.update(_outcome(int(code)) for code in codes)
    return counts


@pytest.mark.parametrize("make", [tabs, nested, arrays, milliseconds, no_header, quotes, no_names, delta])
def test_the_configuration_that_is_written_reads_the_logs_as_was_said(tmp_path, make):
    make(tmp_path / "logs")
    done = CliRunner().invoke(
        cli, ["inspect", str(tmp_path / "logs"), "--json", "--write", str(tmp_path / "daily.yaml")]
    )
    assert done.exit_code == 0, done.exception
    said = json.loads(done.stdout)
    config = load_config(str(tmp_path / "daily.yaml"), environment={})
    assert config == load_config(values=said["configuration"], environment={})
    counts = read_all(config)
    assert counts["plays"] == said["plays"] > 0
    assert counts["ignored"] == said["ignored"]
    assert {reason: entry["rows"] for reason, entry in said["rejected"].items()} == {
        reason: count for reason, count in counts.items() if reason in REASONS
    }
    again = inspect.run(str(tmp_path / "logs"), config.model_dump(mode="json", exclude_unset=True))
    assert (
        again.settings["logs"]
        == load_config(str(tmp_path / "daily.yaml")).model_dump(mode="json", exclude_unset=True)["logs"]
    )


def test_what_was_guessed(tmp_path):
    tabs(tmp_path)
    found = inspect.run(str(tmp_path), {})
    assert found.settings["logs"] == {
        "path": str(tmp_path),
        "columns": {"user_id": "Listener", "item_id": "track", "timestamp": "played_at", "event_type": "action"},
        "csv": {"separator": "\t"},
        "play_events": ["listen"],
    }
    assert found.settings["sequences"] == {"user_id_type": "string", "item_id_type": "string"}
    assert any("'001'" in note for note in found.notes)


def test_only_what_a_file_says_is_taken_over(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("train: {epochs: 3}\nmaintain: {every_days: 1}\nlogs: {max_late_days: 60}\n")
    monkeypatch.setenv("FUXI_MLFLOW__TRACKING_URI", "https://me:secret@mlflow")
    given = inspect.given_settings(str(tmp_path / "mine.yaml"), ["sequences.user_id_type=int64"])
    assert given == {
        "train": {"epochs": 3},
        "maintain": {"every_days": 1},
        "logs": {"max_late_days": 60},
        "sequences": {"user_id_type": "int64"},
    }


def test_settings_that_are_given_are_kept(tmp_path):
    tabs(tmp_path)
    given = {"train": {"epochs": 3}, "logs": {"columns": {"item_id": "played_at"}, "max_late_days": 9}}
    settings = inspect.run(str(tmp_path), given).settings
    assert settings["train"] == {"epochs": 3}
    assert settings["logs"]["max_late_days"] == 9
    assert settings["logs"]["columns"]["item_id"] == "played_at"
    assert settings["logs"]["columns"]["user_id"] == "Listener"


BAD = {
    "unparseable": (lambda row: row | {"timestamp": "noon"}, "timestamp", "'noon'", "logs.timestamp_unit"),
    "null_user_id": (lambda row: row | {"user_id": None}, "user_id", "no value", "logs.csv.null_values"),
    "null_item_id": (lambda row: row | {"item_id": None}, "item_id", "no value", "logs.columns"),
    "null_timestamp": (lambda row: row | {"timestamp": None}, "timestamp", "no value", "logs.columns"),
    "unknown_event_type": (lambda row: row | {"event_type": "x"}, "event_type", "'x'", "logs.play_events"),
    "timestamp_after_landing": (
        lambda row: row | {"timestamp": row["timestamp"] + 864_000},
        "timestamp",
        "s: see",
        "sequences.timezone",
    ),
    "timestamp_too_old": (lambda row: row | {"timestamp": 1_600_000_000}, "timestamp", "'1600000000'", "max_late_days"),
}


@pytest.mark.parametrize("reason", BAD)
def test_the_first_error_names_column_value_and_setting(tmp_path, reason):
    change, column, value, setting = BAD[reason]

    def content(rows):
        events = [{"user_id": u, "item_id": s, "timestamp": t, "event_type": "play"} for u, s, t in rows]
        return lines(json.dumps(change(row) if n % 5 < 2 else row) for n, row in enumerate(events))

    by_day(tmp_path, "plays.json", content)
    found = inspect.run(str(tmp_path), {})
    assert found.trial.rejected == {reason: 96}
    for part in (column, value, setting, "40.0% of the sampled rows", "logs.max_rejected_share"):
        assert part in found.problem, found.problem
    assert "\n" not in found.problem


def test_a_refusal_is_exit_code_2_and_writes_nothing(tmp_path):
    (tmp_path / "plays.csv").write_bytes(lines(["user_id,item_id,timestamp", "1,2,1772452800"]))
    done = CliRunner().invoke(cli, ["inspect", str(tmp_path), "--write", str(tmp_path / "daily.yaml")])
    assert isinstance(done.exception, InputError)
    assert "ds=YYYY-MM-DD" in str(done.exception)
    assert "user_id" in done.stdout
    assert not (tmp_path / "daily.yaml").exists()


def test_a_configuration_is_replaced_only_with_force(tmp_path):
    no_header(tmp_path / "logs")
    target = tmp_path / "daily.yaml"
    target.write_text("mine")
    arguments = ["inspect", str(tmp_path / "logs"), "--write", str(target)]
    done = CliRunner().invoke(cli, arguments)
    assert "--force" in str(done.exception)
    assert target.read_text() == "mine"
    assert CliRunner().invoke(cli, [*arguments, "--force"]).exit_code == 0
    assert target.read_text().startswith("# Made by `fuxi inspect`")


def test_the_screen_fits_80_columns_and_says_what_it_is_a_sample_of(tmp_path):
    nested(tmp_path)
    done = CliRunner().invoke(cli, ["inspect", str(tmp_path), "--rows", "10", "--files", "3"], env={"COLUMNS": "80"})
    assert done.exit_code == 0
    assert "at most the first 10 rows of each of 3 files" in done.stdout
    assert "30 rows: 30 plays" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if str(tmp_path) not in line)


def test_names_and_values_cannot_leave_their_line(tmp_path):
    def content(rows):
        events = [{"user_id": "u\x1b[2J", "item_id\nworkspace": s, "ts\u2028": iso(t)} for _, s, t in rows]
        return lines(map(json.dumps, events))

    by_day(tmp_path / "logs", "plays.json", content)
    columns = 'logs.columns={item_id: "item_id\\nworkspace", timestamp: "ts\\u2028"}'
    arguments = ["inspect", str(tmp_path / "logs"), "--set", columns, "--write", str(tmp_path / "daily.yaml")]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.exception
    assert "\x1b" not in done.stdout
    config = load_config(str(tmp_path / "daily.yaml"), environment={})
    assert config.logs.columns["item_id"] == "item_id\nworkspace"
    assert read_all(config)["plays"] == 240


def test_logs_on_s3(tmp_path, s3):
    milliseconds(tmp_path / "logs")
    storage.upload_folder(str(tmp_path / "logs"), f"{s3}/plays")
    found = inspect.run(f"{s3}/plays/", {})
    assert (found.problem, found.trial.accepted) == ("", 240)
    assert found.settings["logs"]["path"] == f"{s3}/plays"
    [problem] = [inspect.run(found.sampled[0].uri, {}).problem]
    assert problem == ""
    with pytest.raises(InputError, match="no files are below"):
        inspect.run(f"{s3}/nowhere", {})


def test_broken_files_are_refused_in_one_line(tmp_path):
    random_ = random.Random(1)
    users, songs, times = zip(*plays(DAYS[0]), strict=True)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"user_id": users, "item_id": songs, "timestamp": times}), sink)
    text = lines(json.dumps({"user_id": u, "item_id": s, "timestamp": t}) for u, s, t in plays(DAYS[0]))
    comma = lines(["user_id,item_id,timestamp", *(f"{u},{s},{t}" for u, s, t in plays(DAYS[0]))])
    sources = {
        "a.parquet": sink.getvalue().to_pybytes(),
        "a.json": text,
        "a.json.gz": gzip.compress(text),
        "a.csv": comma,
        "a.csv.gz": gzip.compress(comma),
        "a": text,
    }
    for number in range(90):
        name, content = list(sources.items())[number % len(sources)]
        broken = bytearray(content)
        for _ in range(random_.choice((1, 20))):
            broken[random_.randrange(len(broken))] = random_.randrange(256)
        broken = broken[: random_.randrange(len(broken))] if number % 3 == 0 else broken
        folder = tmp_path / str(number) / "ds=2026-02-27"
        folder.mkdir(parents=True)
        (folder / name).write_bytes(broken)
        try:
            problem = inspect.run(str(folder.parent), {}).problem
        except InputError as error:
            problem = str(error)
        assert "\n" not in problem
