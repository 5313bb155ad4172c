"""The checks of a day's statistics: what is out of bounds, what is not judged, and the line that refuses a day."""

import datetime as dt
from dataclasses import replace
from typing import Any

import pytest

from pipelines.calendar import Calendar
from pipelines.logs.quality import BoundCheck, Bounds, DayStats, accepted_days, check_day, refusal

DS = dt.date(2026, 3, 30)  # the day after Berlin's clocks went forward
START = Calendar("UTC").day_start(DS)
BOUNDS = Bounds(
    max_rejected_share=0.25,
    min_volume_ratio=0.5,
    max_volume_ratio=3.0,
    trailing_days=5,
    max_unknown_song_share=0.5,
    max_age_s=172_800,
    max_null_share=0.2,
    max_null_shares={},
    max_null_rise=0.25,
    max_duplicate_share=0.3,
    min_plays=200,
)
GOOD = DayStats(
    day_start=START,
    rows_read=1_100,
    accepted=1_000,
    ignored=90,
    rejected={"null_user_id": 10},
    songs=300,
    unknown_plays=20,
    newest=START - 60,
    nulls={"user_id": 10, "item_id": 0, "timestamp": 0, "play_ms": 110},
    duplicates=12,
    listeners=400,
)


def day(plays: float = 1_000, **values: float) -> dict[str, float]:
    return {"plays_per_landing_day": plays, "null_share_play_ms": 0.1} | values


USUAL = [day()] * 5


def check(name: str, stats: DayStats, history: Any = USUAL, **bounds: Any) -> BoundCheck:
    return {c.name: c for c in check_day(stats, history, replace(BOUNDS, **bounds))}[name]


def test_a_usual_day_passes_every_check_and_all_are_judged() -> None:
    checks = check_day(GOOD, USUAL, BOUNDS)
    assert [(c.name, c.passed, c.judged) for c in checks] == [
        (name, True, True)
        for name in (
            "accepted",
            "rejected_share",
            "plays_per_landing_day",
            "unknown_song_share",
            "newest_play_age_s",
            "null_share_user_id",
            "null_share_item_id",
            "null_share_timestamp",
            "null_share_play_ms",
            "duplicate_share",
        )
    ]
    assert refusal(DS, checks) == ""
    assert all("\n" not in c.detail for c in checks)


def test_duplicates_are_judged_once_they_are_known() -> None:
    names = [c.name for c in check_day(replace(GOOD, duplicates=None), USUAL, BOUNDS)]
    assert "duplicate_share" not in names


@pytest.mark.parametrize(
    ("name", "stats", "detail"),
    [
        (
            "rejected_share",
            replace(GOOD, rejected={"null_user_id": 100, "timestamp_too_old": 230}),
            "330 of 1100 rows were rejected (30%, logs.max_rejected_share allows 25%): "
            "timestamp_too_old 230, null_user_id 100",
        ),
        (
            "plays_per_landing_day",
            replace(GOOD, accepted=499),
            "499 plays a landing day, 0.499 of 1,000, the median of the last 5 published days "
            "(quality.min_volume_ratio allows 0.5)",
        ),
        (
            "plays_per_landing_day",
            replace(GOOD, accepted=3_100),
            "3,100 plays a landing day, 3.10 of 1,000, the median of the last 5 published days "
            "(quality.max_volume_ratio allows 3)",
        ),
        (
            "unknown_song_share",
            replace(GOOD, unknown_plays=501),
            "50.1% of plays are of songs unknown before this day (quality.max_unknown_song_share allows 50%)",
        ),
        (
            "newest_play_age_s",
            replace(GOOD, newest=START - 172_801),
            "the newest play is 48.0 h older than ds 00:00 (172,801 s, quality.max_age_s allows 172,800)",
        ),
        (
            "null_share_item_id",
            replace(GOOD, nulls={"user_id": 0, "item_id": 440, "timestamp": 0, "play_ms": 110}),
            "40% of rows have no item_id (quality.max_null_share allows 20%)",
        ),
        (
            "null_share_play_ms",
            replace(GOOD, nulls={"play_ms": 396}),
            "36% of rows have no play_ms (quality.max_null_rise allows 25% more than the median 10% of the last "
            "5 published days)",
        ),
        (
            "duplicate_share",
            replace(GOOD, duplicates=501),
            "50% of plays are duplicates (quality.max_duplicate_share allows 30%)",
        ),
    ],
)
def test_a_number_beyond_its_bound_fails_and_says_what_is_allowed(name: str, stats: DayStats, detail: str) -> None:
    found = check(name, stats)
    assert not found.passed
    assert found.detail == detail
    assert [c.name for c in check_day(stats, USUAL, BOUNDS) if not c.passed] == [name]


@pytest.mark.parametrize(
    ("name", "stats"),
    [
        ("rejected_share", replace(GOOD, rejected={"null_user_id": 275})),
        ("plays_per_landing_day", replace(GOOD, accepted=500)),
        ("plays_per_landing_day", replace(GOOD, accepted=3_000)),
        ("unknown_song_share", replace(GOOD, unknown_plays=500)),
        ("newest_play_age_s", replace(GOOD, newest=START - 172_800)),
        ("null_share_user_id", replace(GOOD, nulls={"user_id": 220})),
        ("null_share_play_ms", replace(GOOD, nulls={"play_ms": 385})),
        ("duplicate_share", replace(GOOD, duplicates=300)),
    ],
)
def test_the_bound_itself_is_allowed(name: str, stats: DayStats) -> None:
    assert check(name, stats).passed


def test_volume_is_a_landing_day_s_against_the_median_of_the_last_days() -> None:
    history = [day(9_000)] * 4 + [day(plays) for plays in (800, 1_200, 1_000, 50, 1_100)]
    found = check("plays_per_landing_day", replace(GOOD, accepted=8_000, landing_days=8), history)
    assert (found.value, found.lower, found.upper) == (1_000, 500, 3_000)
    assert "0.12 of" in check("plays_per_landing_day", replace(GOOD, landing_days=8), history).detail


def test_usual_needs_three_published_days() -> None:
    found = check("plays_per_landing_day", replace(GOOD, accepted=1), [day(), day()], min_plays=0)
    assert found.passed and not found.judged
    assert found.detail == "1 plays a landing day (not judged: 2 published days before, 3 needed)"
    assert not check("plays_per_landing_day", replace(GOOD, accepted=1), [day()] * 3, min_plays=0).passed


def test_a_first_build_judges_no_unknown_songs() -> None:
    found = check("unknown_song_share", replace(GOOD, unknown_plays=None), [])
    assert (found.value, found.passed, found.judged) == (None, True, False)
    assert "unknown_song_share" not in replace(GOOD, unknown_plays=None).values()


def test_an_optional_column_is_judged_by_its_own_bound_or_against_what_was_usual() -> None:
    stats = replace(GOOD, nulls={"play_ms": 1_100})
    assert not check("null_share_play_ms", stats, []).judged
    assert check("null_share_play_ms", stats, [day(null_share_play_ms=0.8)] * 3).passed
    assert not check("null_share_play_ms", stats, [day(null_share_play_ms=0.7)] * 3).passed
    own = check("null_share_play_ms", stats, [], max_null_shares={"play_ms": 0.9})
    assert own.detail == "100% of rows have no play_ms (quality.max_null_shares.play_ms allows 90%)"
    assert not own.passed
    assert check("null_share_user_id", replace(GOOD, nulls={"user_id": 500}), max_null_shares={"user_id": 0.5}).passed


def test_an_optional_column_that_is_gone_has_no_values() -> None:
    found = check("null_share_play_ms", replace(GOOD, nulls={"user_id": 0}))
    assert (found.value, found.passed) == (1.0, False)
    assert "null_share_play_ms" not in [c.name for c in check_day(replace(GOOD, nulls={"user_id": 0}), [], BOUNDS)]


def test_a_small_service_is_measured_but_only_its_rejects_are_judged() -> None:
    """Scale is what is usual: a day that falls from many plays to few is no small service."""
    broken = replace(GOOD, accepted=10, unknown_plays=10, rejected={"null_user_id": 900}, duplicates=10)
    small = check_day(broken, [day(150)] * 3, BOUNDS)
    assert [c.name for c in small if not c.passed] == ["rejected_share"]
    assert {c.name for c in small if c.judged} == {"accepted", "rejected_share"}
    assert small[3].detail.endswith("(not judged: quality.min_plays asks for 200 a landing day)")
    fallen = [c.name for c in check_day(broken, USUAL, BOUNDS) if not c.passed]
    assert fallen == ["rejected_share", "plays_per_landing_day", "unknown_song_share", "duplicate_share"]


def test_the_age_of_the_newest_play_ends_at_the_zone_s_midnight() -> None:
    """23 hours before 00:00 of the 30th it was still 00:00 of the 29th: that day had 23 hours."""
    berlin = Calendar("Europe/Berlin")
    newest = berlin.day_start(dt.date(2026, 3, 29))
    found = check("newest_play_age_s", replace(GOOD, day_start=berlin.day_start(DS), newest=newest))
    assert found.value == 23 * 3600


def test_a_refusal_is_one_line_with_every_broken_number_and_both_remedies() -> None:
    stats = replace(GOOD, accepted=300, unknown_plays=300, newest=START - 300_000)
    line = refusal(DS, check_day(stats, USUAL, BOUNDS))
    assert line == (
        "ds 2026-03-30: 300 plays a landing day, 0.30 of 1,000, the median of the last 5 published days "
        "(quality.min_volume_ratio allows 0.5); 100% of plays are of songs unknown before this day "
        "(quality.max_unknown_song_share allows 50%); the newest play is 83.3 h older than ds 00:00 (300,000 s, "
        "quality.max_age_s allows 172,800): correct the logs and run with --refresh-inputs, or --accept-quality to "
        "take the day as it is"
    )


def test_a_day_without_plays_cannot_be_accepted() -> None:
    empty = DayStats(day_start=START, rows_read=0, accepted=0)
    assert refusal(DS, check_day(empty, USUAL, BOUNDS)) == (
        "ds 2026-03-30: the new log files hold no plays (0 rows, 0 other events): "
        "correct the logs and run with --refresh-inputs"
    )
    dirty = DayStats(day_start=START, rows_read=9, accepted=0, ignored=1, rejected={"unparseable": 8})
    line = refusal(DS, check_day(dirty, USUAL, BOUNDS))
    assert "no plays (9 rows, 1 other events); 8 of 9 rows were rejected" in line
    assert "--accept-quality" not in line


def test_values_hold_every_number_by_name() -> None:
    assert replace(GOOD, landing_days=4).values() == {
        "rows_read": 1_100,
        "accepted": 1_000,
        "ignored": 90,
        "rejected": 10,
        "rejected_null_user_id": 10,
        "landing_days": 4,
        "songs": 300,
        "newest_play": START - 60,
        "duplicates": 12,
        "listeners": 400,
        "rejected_share": 10 / 1_100,
        "plays_per_landing_day": 250,
        "unknown_song_share": 0.02,
        "newest_play_age_s": 60,
        "null_share_item_id": 0,
        "null_share_play_ms": 0.1,
        "null_share_timestamp": 0,
        "null_share_user_id": 10 / 1_100,
        "duplicate_share": 0.012,
    }


def row(number: int, metric: str, value: float, passed: bool | None = None, override: bool = False) -> dict[str, Any]:
    ds = DS + dt.timedelta(days=number)
    return {"ds": ds, "metric": metric, "value": value, "passed": passed, "accepted_override": override}


def test_history_is_the_days_that_were_taken_oldest_first() -> None:
    rows = [
        row(2, "accepted", 3, True),
        row(0, "accepted", 1, True),
        row(0, "songs", 7),
        row(1, "accepted", 2, True),
        row(1, "rejected_share", 0.9, False),  # refused
        row(3, "accepted", 4, True),
        row(3, "rejected_share", 0.8, False, override=True),  # taken all the same
    ]
    assert accepted_days(rows) == [{"accepted": 1, "songs": 7}, {"accepted": 3}, {"accepted": 4, "rejected_share": 0.8}]
