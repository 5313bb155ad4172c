"""The rejected rows of a day on its page: why, how many, and a few of them as they were read."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from jobs.day import Day, log_spec
from pipelines import storage
from pipelines.errors import InputError
from pipelines.forget.redact import possible_users
from pipelines.histories.shards import open_parquet
from pipelines.logs.quality import REJECTED_SHARE
from pipelines.redact import visible
from pipelines.schema import REASON, SOURCE_FILE, USER_ID

REASONS = {
    "unparseable": "a value that is not of its column's type",
    "null_user_id": "no listener",
    "null_item_id": "no song",
    "null_timestamp": "no time",
    "unknown_event_type": "an event type in neither of the configured lists",
    "negative_duration": "a negative duration, of the play or of the song",
    "timestamp_after_landing": "later than the date on which it arrived",
    "timestamp_too_old": "older on arrival than logs.max_late_days",
}
SAMPLES = 2
"""Rows of each reason that are shown."""
_FILES, _MOST = 8, 300
_PREFIX = "rejected_"


@dataclass(frozen=True)
class Sample:
    """A row as it was read, and its file. listeners: the ids that it may have, by which `fuxi forget` finds it."""

    row: str
    file: str
    listeners: str


@dataclass(frozen=True)
class Rejected:
    """Rows that were rejected for one reason. share: of all rows that were read, None if these are not known."""

    reason: str
    meaning: str
    rows: int
    share: float | None
    samples: tuple[Sample, ...]


def rejected_rows(day: Day, counts: Mapping[str, float], read: float) -> list[Rejected]:
    """The most frequent reason first. counts: reason -> rows. read: all rows of the day."""
    reasons = {reason: int(rows) for reason, rows in counts.items() if rows}
    samples = _samples(day, reasons) if reasons else {}
    return [
        Rejected(reason, REASONS.get(reason, ""), rows, rows / read if read else None, tuple(samples.get(reason, ())))
        for reason, rows in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    ]


def judged_counts(values: Mapping[str, float]) -> dict[str, float]:
    """Reason -> rows, of a day's rows in the table `quality`, which refused days have, too."""
    named = {name.removeprefix(_PREFIX): value for name, value in values.items() if name.startswith(_PREFIX)}
    return {reason: value for reason, value in named.items() if f"{_PREFIX}{reason}" != REJECTED_SHARE}


def _samples(day: Day, reasons: Collection[str]) -> dict[str, list[Sample]]:
    """The first rows of each reason in the quarantine of the day, from its first files; none if it cannot be read."""
    spec, kept = log_spec(day), {reason: [] for reason in reasons}
    column, id_type = spec.column(USER_ID), day.workspace.spec.user_id_type
    files = [file.uri for file in storage.list_files(day.workspace.quarantine(day.ds)) if file.uri.endswith(".parquet")]
    for uri in sorted(files)[:_FILES]:
        if all(len(found) == SAMPLES for found in kept.values()):
            break
        try:
            with open_parquet(uri) as source:
                rows = source.read_row_group(0, [REASON, SOURCE_FILE, "row"])
        except (InputError, OSError):
            continue
        for reason, name, text in zip(*(rows[name].to_pylist() for name in (REASON, SOURCE_FILE, "row")), strict=True):
            found = kept.get(reason)
            if found is not None and len(found) < SAMPLES:
                ids = "\n".join(str(one) for one in possible_users(text, column, id_type))
                found.append(Sample(_short(visible(text)), "/".join(name.split("/")[-2:]), ids))
    return kept


def _short(text: str) -> str:
    return text if len(text) <= _MOST else f"{text[: _MOST - 1]}…"
