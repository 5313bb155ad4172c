"""Texts with the names of places for their URIs, and back at other places."""

import pytest

from jobs.places import located, portable

PLACES = {"workspace": "/data/w", "logs.path": "/data/logs"}


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("/data/w/reports/x.html", "{workspace}/reports/x.html"),
        ("/data/w", "{workspace}"),
        ("/data/w2/x, /data/w-2 and /data/w.old", None),  # other places
        ("/mnt/data/w/x", None),
        ("sqlite:////data/w/mlflow.db is locked", "sqlite:///{workspace}/mlflow.db is locked"),
        (
            "/data/logs/ds=2026-03-01/plays.csv: a column is missing",
            "{logs.path}/ds=2026-03-01/plays.csv: a column is missing",
        ),
    ],
)
def test_whole_uris_are_replaced_and_come_back_where_the_places_are(text: str, stored: str | None) -> None:
    value = {"result": [text, 1, None]}
    assert portable(value, PLACES) == {"result": [stored or text, 1, None]}
    assert located(portable(value, PLACES), PLACES) == value
    if stored:
        moved = {"workspace": "s3://bucket/w", "logs.path": "/elsewhere"}
        assert "/data" not in str(located(portable(value, PLACES), moved))
