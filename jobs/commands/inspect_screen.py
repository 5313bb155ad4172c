"""The screen of `fuxi inspect`, and the same for programs."""

import datetime as dt
import json
from collections.abc import Sequence
from typing import Any

from jobs.commands.inspect import Inspection, settings_as_yaml
from jobs.runtime.screen import Screen, screen
from pipelines import storage
from pipelines.logs.inspection import columns
from pipelines.redact import visible
from pipelines.schema import TIMESTAMP


def as_json(inspection: Inspection) -> str:
    """The same for programs, one object."""
    found, tried = inspection.layout, inspection.trial
    content = {
        "path": found.path,
        "kind": found.kind,
        "files": len(found.files),
        "bytes": sum(file.size for file in found.files),
        "formats": dict(found.formats),
        "landing_days": found.landing_days,
        "sample": {"files": [file.uri for file in inspection.sampled], "rows_of_each": inspection.rows_each},
        "columns": [_profile_content(profile) for profile in inspection.profiles],
        "mapping": inspection.mapping.columns,
        "doubts": inspection.mapping.doubts,
        "units": tried.units,
        "rows": tried.rows,
        "plays": tried.accepted,
        "ignored": tried.ignored,
        "duplicates": tried.duplicates,
        "listeners": tried.listeners,
        "songs": tried.songs,
        "rejected": {
            reason: {"rows": count, "example": tried.examples.get(reason, "")}
            for reason, count in tried.rejected.most_common()
        },
        "refused_files": tried.refused,
        "notes": inspection.notes,
        "configuration": inspection.settings,
        "problem": inspection.problem,
    }
    return json.dumps(content, indent=2)


def _profile_content(profile: columns.Profile) -> dict[str, Any]:
    kept = ("name", "types", "files", "rows", "nulls", "distinct", "example", "least", "greatest")
    return {name: getattr(profile, name) for name in kept}


def render(inspection: Inspection) -> None:
    """Print what was found, for people."""
    shown = screen()
    _render_files(shown, inspection)
    _render_columns(shown, inspection)
    if inspection.trial.rows:
        _render_trial(shown, inspection)
    for note in inspection.notes:
        shown.say(f"- {note}", indent=2)
    state = "reads the sample" if not inspection.problem else "does not read it yet"
    shown.say(f"\nThe configuration ({state}):\n")
    shown.console.print(settings_as_yaml(inspection.settings), soft_wrap=True, end="")


def _render_files(shown: Screen, inspection: Inspection) -> None:
    found, days = inspection.layout, inspection.layout.landing_days
    size = storage.in_words(sum(file.size for file in found.files))
    formats = ", ".join(f"{count:,} {name or 'of unknown format'}" for name, count in found.formats.items())
    shown.say(f"{found.path}\n{_counted(len(found.files), 'file')} ({formats}), {size}")
    keys = "/".join(f"{key}=..." for key in found.partition)
    if days:
        shown.say(f"{_counted(len(days), 'landing day')} in {keys}, {days[0]} to {days[-1]}{_gap(days)}", indent=2)
    else:
        shown.say("no landing days: no folder has the date on which its files arrived", indent=2)
    sampled = _counted(len(inspection.sampled), "file")
    shown.say(f"A sample: at most the first {inspection.rows_each:,} rows of each of {sampled}.")


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def _gap(days: Sequence[str]) -> str:
    """How many days between the first and the last are not there."""
    span = (dt.date.fromisoformat(days[-1]) - dt.date.fromisoformat(days[0])).days + 1
    return f", {span - len(days):,} days between them are missing" if span > len(days) else ""


def _render_columns(shown: Screen, inspection: Inspection) -> None:
    ours = {column: name for name, column in inspection.mapping.columns.items()}
    rows = [
        (
            profile.name,
            ours.get(profile.name, ""),
            "|".join(profile.types),
            f"{profile.null_share:.1%}" if profile.nulls else "0",
            f"{profile.distinct:,}",
            _shown(profile),
        )
        for profile in inspection.profiles
    ]
    names = ("Column", "Is", "Type", "Nulls", "Distinct", "Values")
    shown.table(names, rows, right=("Nulls", "Distinct"), wrapped=("Column", "Type", "Values"))
    units = sorted(set(inspection.trial.units.values()))
    timestamp = next((p for p in inspection.profiles if p.name == inspection.mapping.columns.get(TIMESTAMP)), None)
    if timestamp and timestamp.unit:
        shown.say(f"times are numbers, in {' and '.join(units) or timestamp.unit} since 1970")


def _shown(profile: columns.Profile) -> str:
    """The range of a column's values, the commonest ones, or one of them."""
    if profile.least != profile.greatest and not profile.lossy:
        return f"{profile.least} .. {profile.greatest}"
    if 1 < len(profile.counts) <= 10:
        ordered = sorted(profile.counts, key=lambda value: -profile.counts[value])
        return ", ".join(f"{_short(value, 12)} {profile.counts[value]:,}" for value in ordered[:3])
    return _short(profile.example)


def _short(text: str, most: int = 30) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _render_trial(shown: Screen, inspection: Inspection) -> None:
    tried = inspection.trial
    span = f", {columns.moment(tried.first)} to {columns.moment(tried.last)} UTC" if tried.first and tried.last else ""
    shown.say(
        f"{tried.rows:,} rows: {tried.accepted:,} plays of {tried.listeners:,} listeners and {tried.songs:,} songs"
        f"{span}; {tried.duplicates:,} repeat another, {tried.ignored:,} are other events, "
        f"{tried.rejected.total():,} are rejected"
    )
    if tried.rejected:
        example = "For example, and what would read it"
        rows = [
            (reason, f"{count:,}", tried.examples.get(reason, "")) for reason, count in tried.rejected.most_common()
        ]
        shown.table(("Rejected as", "Rows", example), rows, right=("Rows",), wrapped=(example,))
    for line in tried.refused[:5]:
        shown.say(f"- would be refused: {visible(line)}", indent=2)
