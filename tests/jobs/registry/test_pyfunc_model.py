"""When a list is requested of the pyfunc: the hour that the model was trained for, unless the caller names a time."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from jobs.registry import versions

DAY_ONE, DAY_TWO = dt.date(2026, 3, 2), dt.date(2026, 3, 3)
HOUR = 3600


@pytest.fixture
def registered(deployment: Callable[..., Any]) -> Callable[..., Any]:
    """Registers a model of DAY_ONE under some settings: returns its day, its pyfunc and one listener's plays."""

    def register(*settings: str) -> tuple[Any, Any, pd.DataFrame]:
        import mlflow

        made = deployment(*settings)
        made.sessionized(DAY_ONE)
        day = made.day(DAY_ONE)
        model = mlflow.pyfunc.load_model(versions.model_uri(day, made.trained(DAY_ONE)))
        night = day.calendar.day_start(DAY_ONE)
        times = [night - 60 * HOUR, night - 30 * HOUR, night - 2 * HOUR]
        plays = pd.DataFrame({"item_ids": [[made.item_id(n) for n in (1, 2, 3)]], "timestamps": [times]})
        return day, model, plays

    return register


def scores(model: Any, plays: pd.DataFrame, **columns: Any) -> list[float]:
    return list(model.predict(plays.assign(**columns))["scores"][0])


def test_without_a_request_time_the_list_is_that_of_the_day_the_model_was_trained_for(registered) -> None:
    day, model, plays = registered()
    at_eight = day.calendar.day_start(DAY_ONE) + 8 * HOUR
    assert scores(model, plays) == scores(model, plays, request_time=at_eight)
    assert scores(model, plays) != scores(model, plays, request_time=at_eight + 10 * HOUR)


def test_a_listener_who_has_played_since_is_served_at_the_next_request_hour(registered) -> None:
    day, model, plays = registered()
    newest = day.calendar.day_start(DAY_TWO) + 9 * HOUR  # an hour after the request of DAY_TWO
    later = plays.assign(timestamps=[[*plays["timestamps"][0][:2], newest]])
    assert scores(model, later) == scores(model, later, request_time=newest + 23 * HOUR)


def test_another_request_hour_changes_what_the_model_reads(registered) -> None:
    day, model, plays = registered("serving.request_hour=18", "sequences.timezone=Europe/Berlin")
    at_six = day.calendar.day_start(DAY_ONE) + 18 * HOUR
    assert scores(model, plays) == scores(model, plays, request_time=at_six)
    assert scores(model, plays) != scores(model, plays, request_time=at_six - 10 * HOUR)


def test_a_loaded_model_can_be_given_another_hour(registered) -> None:
    import mlflow

    day, model, plays = registered()
    evening = mlflow.pyfunc.load_model(versions.model_uri(day, "1"), model_config={"request_hour": 18})
    at_six = day.calendar.day_start(DAY_ONE) + 18 * HOUR
    assert scores(evening, plays) == scores(model, plays, request_time=at_six)
