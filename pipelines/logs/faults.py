"""Why rows are rejected, said so that somebody can act: the column, an example of its value, and the setting."""

from pipelines.logs.formats import values
from pipelines.logs.formats.base import Fault, LogSpec
from pipelines.schema import EVENT_TYPE, ITEM_ID, TIMESTAMP, USER_ID

COLUMN_OF = {
    "null_user_id": USER_ID,
    "null_item_id": ITEM_ID,
    "null_timestamp": TIMESTAMP,
    "unknown_event_type": EVENT_TYPE,
    "timestamp_after_landing": TIMESTAMP,
    "timestamp_too_old": TIMESTAMP,
}
"""The column that a reason to reject a row is about."""
_SETTINGS = {
    **dict.fromkeys(("null_user_id", "null_item_id", "null_timestamp"), "logs.columns and logs.csv.null_values"),
    "unknown_event_type": "logs.play_events and logs.other_events",
    "timestamp_after_landing": "logs.timestamp_unit and sequences.timezone",
    "timestamp_too_old": "logs.timestamp_unit and logs.max_late_days",
}
_LONGEST = 60


def explained(spec: LogSpec, fault: Fault) -> str:
    """A line on values that cannot be read: what was found where, and what would read it."""
    found = quoted(fault.example)
    if not fault.column:
        return f"for example {found} is no row: correct logs.format, or logs.csv (separator, quote, escape, columns)"
    column = spec.column(fault.column)
    name = column if column == fault.column else f"{column} ({fault.column})"
    return f"column {name} has {found}, expected {values.EXPECTED[spec.kind(fault.column)]}: {_remedy(spec, fault)}"


def of_reason(spec: LogSpec, reason: str, example: object) -> str:
    """A line on rows that were read and are rejected nevertheless; "" where the reason says all. example: a value."""
    if reason not in COLUMN_OF:
        return ""
    name = COLUMN_OF[reason]
    value = "no value" if example is None else f"{quoted(str(example))}{' s' if name == TIMESTAMP else ''}"
    return f"column {spec.column(name)} has {value}: see {_SETTINGS[reason]}"


def quoted(text: str) -> str:
    """The beginning of a text in quotes, on one line, whatever it is."""
    shown = repr(values.escaped(text))
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 4]}...'"


def _remedy(spec: LogSpec, fault: Fault) -> str:
    if fault.column in (USER_ID, ITEM_ID):
        if spec.kind(fault.column) == values.ID:
            return f"set sequences.{fault.column}_type: string in a new workspace, or correct logs.columns"
        return "correct logs.columns or the logs"
    if fault.column == TIMESTAMP:
        return "correct logs.columns, or logs.timestamp_unit for numbers"
    return "correct logs.columns or the logs"
