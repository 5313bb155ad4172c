"""Guesses about logs that nobody has described yet: layouts, dialects, columns and their mapping."""

import datetime as dt

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import InputError
from pipelines.logs.files import LogFile, LogSpec
from pipelines.logs.inspection import columns, dialect, layout, mapping

NOON = 1_772_452_800  # 2026-03-02 12:00:00 UTC
UNTIL = NOON + 2 * 86_400
SPEC = LogSpec("")


def profiles(rows, files=1):
    """Profiles of rows as a JSON file would have them."""
    file = LogFile("plays.json", 1, "", "2026-03-02")
    return columns.profiles([columns.Sample(file, "json", {}, rows, [])] * files, until=UNTIL)


def guess(rows, given=None):
    return mapping.guess(profiles(rows), files=1, given=given or {})


def row(n, **other):
    return {"user_id": 100 + n % 7, "item_id": 1000 + n, "timestamp": NOON + n} | other


VALUES = {
    "user_id": lambda n: f"listener-{n % 7}",
    "item_id": lambda n: f"song-{n}",
    "timestamp": lambda n: NOON + n,
    "event_type": lambda n: "listen" if n % 3 else "skip",
    "play_ms": lambda n: 100_000 + n,
    "duration_ms": lambda n: 200_000 + n,
    "play_source": lambda n: "Shuffle" if n % 3 else "click",
}


@pytest.mark.parametrize("name", VALUES)
def test_every_known_name_is_found_in_any_case_and_any_depth(name):
    known = [other for group in mapping._NAMES[name] for other in group.split()]
    for other in known:
        for written in (other, other.upper(), f"payload.{other}"):
            if name == "duration_ms" and other == "duration":
                continue  # of what? said, not taken
            rows = [{key: value(n) for key, value in VALUES.items() if key != name} for n in range(30)]
            rows = [{**one, written: VALUES[name](n)} for n, one in enumerate(rows)]
            assert guess(rows).columns.get(name) == written, written


def test_a_name_alone_is_not_enough():
    rows = [row(n, time="quickly", event="click", ms_played="much") for n in range(30)]
    assert guess(rows).columns == {"user_id": "user_id", "item_id": "item_id", "timestamp": "timestamp"}
    without = [{"user": n, "song": n, "timestamp": 5 * n} for n in range(30)]  # seconds since when?
    problem = guess(without).problem
    assert "the time (timestamp)" in problem
    assert "the values of timestamp are no times between 2000 and the last landing day" in problem
    assert "logs.columns={user_id: user, item_id: song, timestamp: ...}" in problem


def test_what_would_do_as_well_is_said():
    rows = [{"user": n, "track_id": n, "start_time": NOON + n, "end_time": NOON + n + 200} for n in range(30)]
    found = guess(rows)
    assert found.doubts == {"timestamp": ("end_time",)}
    assert any("AMBIGUOUS" in note and "end_time" in note for note in found.notes)


def test_what_is_given_is_not_guessed():
    rows = [row(n, listener=f"a{n}") for n in range(30)]
    assert guess(rows, {"user_id": "listener"}).columns["user_id"] == "listener"
    assert guess(rows, {"user_id": "listener"}).user_id_type == "string"


@pytest.mark.parametrize(
    ("values", "type_", "said"),
    [
        ([1, 2, 3], "int64", ""),
        (["1", "2", "3"], "int64", ""),
        ([1.0, 2.0, None], "int64", "no value in 33%"),
        (["7", "007", "8"], "string", "'007'"),
        (["1", "9223372036854775808", "3"], "string", "'9223372036854775808'"),
        ([2**63, 1, 2], "string", "'9223372036854775808'"),
        (["a", "b", "1"], "string", "'a'"),
        (["a", "b", "c"], "string", ""),
        ([*range(500), "unknown"], "int64", "'unknown'"),
    ],
)
def test_ids_are_whole_numbers_only_where_nothing_is_lost(values, type_, said):
    rows = [row(n, user_id=value) for n, value in enumerate(values)]
    found = guess(rows)
    assert found.user_id_type == type_
    notes = [note for note in found.notes if "user_id" in note]
    assert bool(notes) == bool(said)
    assert said in "".join(notes)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"played_seconds": 180}, "played_seconds may be play_ms in seconds"),
        ({"track_length_seconds": 200}, "track_length_seconds may be duration_ms in seconds"),
        ({"track_length": 200}, "track_length looks like seconds"),
        ({"played_ratio_pct": 90}, "played_ratio_pct is a share"),
        ({"duration": 200_000}, "duration may be the length of the song"),
    ],
)
def test_lengths_in_other_units_are_said_and_left_out(extra, said):
    found = guess([row(n, **extra) for n in range(30)])
    assert not {"play_ms", "duration_ms"} & found.columns.keys()
    assert any(said in note for note in found.notes)


def test_events_are_divided_and_the_rest_is_named():
    events = ["listen", "listen", "like", "skip"]
    found = guess([row(n, event=events[n % 4]) for n in range(40)])
    assert (found.play_events, found.other_events) == (("listen",), ("like",))
    assert any("'skip' (10 rows)" in note and "logs.other_events" in note for note in found.notes)
    rows = [row(n, event=events[n % 4]) for n in range(40)]
    known = mapping.guess(profiles(rows), files=1, given={}, events=["skip"])
    assert not any("skip" in note for note in known.notes)


@pytest.mark.parametrize(
    ("column", "values", "unchosen"),
    [
        ("play_source", ["click", "shuffle", "radio", "album"], ("radio", "shuffle")),
        ("is_organic", [1, 0], ("0",)),
        ("is_organic", [True, False], ("false",)),
        ("is_organic", ["True", "False"], ("False",)),
        ("shuffle", [True, False, None], ("true",)),
        ("autoplay", ["0", "1"], ("1",)),
        ("context.shuffle", ["yes", "no"], ()),  # unknown values are nobody's guess
        ("play_source", ["click", "album"], ()),
        ("play_source", [["shuffle"], ["click"]], ()),
    ],
)
def test_sources_that_no_listener_chose_are_guessed_by_their_values(column, values, unchosen):
    found = guess([row(n, **{column: values[n % len(values)]}) for n in range(40)])
    assert found.unchosen_sources == unchosen
    assert ("play_source" in found.columns) == bool(unchosen)
    assert any("train.unchosen_weight" in note for note in found.notes) == bool(unchosen)


@pytest.mark.parametrize(
    ("written", "zoneless"),
    [
        ("2026-03-02T12:00:00Z", False),
        ("2026-03-02 12:00:00 UTC", False),
        ("2026-03-02T12:00:00+01:00", False),
        ("2026-03-02T12:00:00-0500", False),
        ("2026-03-02 12:00:00", True),
        ("2026-03-02", True),
        (NOON, False),
        (str(NOON), False),
    ],
)
def test_times_without_a_zone_are_said_to_be_read_as_utc(written, zoneless):
    found = guess([row(n, timestamp=written) for n in range(5)])
    notes = [note for note in found.notes if "read as UTC" in note and "sequences.timezone" in note]
    assert bool(notes) == zoneless


def test_numbers_among_written_times_are_no_times_without_a_zone():
    written = ["2026-03-02T12:00:00Z", str(NOON), f"{NOON}.5"]
    assert not any("read as UTC" in note for note in guess([row(n, timestamp=written[n % 3]) for n in range(9)]).notes)


def test_a_profile_counts_nulls_and_knows_units():
    rows = [row(n, timestamp=(NOON + n) * 1000, title=["", "x", None][n % 3]) for n in range(30)]
    by_name = {profile.name: profile for profile in profiles(rows, files=2)}
    assert (by_name["title"].nulls, by_name["title"].rows, by_name["title"].distinct) == (40, 60, 1)
    assert (by_name["timestamp"].unit, by_name["timestamp"].as_time) == ("ms", 1.0)
    assert (by_name["timestamp"].least, by_name["timestamp"].greatest) == ("2026-03-02 12:00:00", "2026-03-02 12:00:29")
    assert (by_name["user_id"].least, by_name["user_id"].greatest) == ("100", "106")


TABLE = pa.table({"user_id": [1], "item_id": [2], "timestamp": [NOON]})


def put(root, *places):
    for place in places:
        file = root / place
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(TABLE, file)
    return str(root)


@pytest.mark.parametrize(
    ("places", "partition"),
    [
        (["ds=2026-03-01/a.parquet", "ds=2026-03-02/a.parquet"], ("ds",)),
        (["dt=20260301/hour=07/a.parquet"], ("dt",)),
        (["region=eu/day=2026-03-01/a.parquet"], ("day",)),
        (["year=2026/month=3/day=1/a.parquet"], ("year", "month", "day")),
        (["Year=2026/Month=03/Day=01/a.parquet"], ("Year", "Month", "Day")),
    ],
)
def test_the_keys_of_the_landing_day_are_found(tmp_path, places, partition):
    found = layout.look(put(tmp_path, *places), SPEC)
    assert (found.kind, found.partition, found.problem) == ("days", partition, "")
    assert found.landing_days[0] == "2026-03-01"


def test_two_keys_that_are_dates_are_said(tmp_path):
    found = layout.look(put(tmp_path, "event_date=2026-02-28/dt=2026-03-01/a.parquet"), SPEC)
    assert found.partition == ("dt",)
    assert any("event_date would do as the landing day" in note for note in found.notes)


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (["a.parquet", "b.parquet"], "2 files are in"),
        (["plays-2026-03-01.parquet"], "ds=2026-03-01"),
        (["2026-03-01/a.parquet"], "ds=2026-03-01"),
        (["2026/03/01/a.parquet"], "ds=2026-03-01"),
        (["country=de/a.parquet"], "logs.partition"),
        (["ds=2026-03-01/a.parquet", "ds=2026-03-02/a.parquet", "ds=2026-02-30/a.parquet"], "ds=2026-02-30"),
    ],
)
def test_files_without_a_landing_day_are_refused_with_what_to_do(tmp_path, places, said):
    found = layout.look(put(tmp_path, *places), SPEC)
    assert said in found.problem
    assert "\n" not in found.problem
    assert len(layout.choose(found, 20)) == len(places) - (said == "ds=2026-02-30")


def test_a_file_or_a_day_within_logs_leads_to_the_folder_above(tmp_path):
    put(tmp_path, "ds=2026-03-01/a.parquet", "ds=2026-03-02/a.parquet")
    for place in ("ds=2026-03-01", "ds=2026-03-01/a.parquet"):
        found = layout.look(str(tmp_path / place), SPEC)
        assert (found.path, found.landing_days, found.problem) == (str(tmp_path), ["2026-03-01"], "")
    put(tmp_path, "b.parquet")
    assert "single file" in layout.look(str(tmp_path / "b.parquet"), SPEC).problem


def test_formats_that_names_do_not_say_are_told_by_the_first_bytes(tmp_path):
    day = tmp_path / "ds=2026-03-02"
    day.mkdir()
    (day / "firehose-1").write_text('{"user_id": 1}\n')
    assert layout.look(str(tmp_path), SPEC).format == "json"
    (day / "notes").write_text("hello")
    assert "notes: neither its name nor its first bytes" in layout.look(str(tmp_path), SPEC).problem
    (day / "notes").write_text("a,b\n")
    assert "files of csv and json" in layout.look(str(tmp_path), SPEC).problem


def test_what_is_not_there_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no file or folder"):
        layout.look(str(tmp_path / "nowhere"), SPEC)
    with pytest.raises(InputError, match="no files are below"):
        layout.look(str(tmp_path), SPEC)


def test_a_sample_is_of_many_days_from_the_first_to_the_last():
    days = [str(dt.date(2026, 1, 1) + dt.timedelta(n)) for n in range(50)]
    files = tuple(LogFile(f"{day}/{part}", 1, "", day) for day in days for part in "abc")
    chosen = layout.choose(layout.Layout("", "days", files), 20)
    assert (len(chosen), chosen[0].landing_day, chosen[-1].landing_day) == (20, days[0], days[-1])
    assert len({file.landing_day for file in chosen}) == 20
    few = layout.choose(layout.Layout("", "days", files[:9]), 20)
    assert few == sorted(files[:9], key=lambda file: (file.landing_day, file.uri))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("user_id,item_id,timestamp\n1,2,3\n", {"separator": ",", "header": True}),
        ("user\ttrack\tat\n1\t2,5\t3\n", {"separator": "\t"}),
        ('u;s;t\n1;"a;b";3\n1;2;3\n', {"separator": ";"}),
        (f"7,8,{NOON}\n", {"header": False, "columns": ("user_id", "item_id", "timestamp")}),
        (
            "u1|2026-03-02 12:00:00|s1|x\n",
            {"separator": "|", "columns": ("column_1", "timestamp", "column_3", "column_4")},
        ),
        ('a,b,c\n1,"say \\"hi\\", he",3\n', {"escape": "\\"}),
        ('a,b,c\n1,"Heroes,3\n1,x,3\n', {"quote": ""}),
        ('a,b,c\n1,"Heroes,3\n1,"x",3\n', {"quote": '"'}),  # quotes around cells: the one that is open is a fault
    ],
)
def test_dialects(tmp_path, text, expected):
    file = tmp_path / "plays.csv"
    file.write_text(text)
    found = dialect.guess(LogFile(str(file), len(text), "", "2026-03-02"), SPEC)
    assert {name: getattr(found.csv, name) for name in expected} == expected
    assert bool(found.problem) == ("column_1" in found.csv.columns)
    if found.problem:
        named = LogSpec("", csv=dialect.CsvSpec(columns=("user_id", "timestamp", "item_id", "title")))
        again = dialect.guess(LogFile(str(file), len(text), "", "2026-03-02"), named)
        assert (again.csv.header, again.csv.columns, again.problem) == (False, named.csv.columns, "")
