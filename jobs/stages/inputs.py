"""What a ds is computed from: found and frozen once by the first stage, checked by every later run of it."""

import datetime as dt
from collections.abc import Collection, Mapping, Sequence

from jobs.day import Day, RunRecord, log_spec
from jobs.places import located
from pipelines import delta_tables, storage
from pipelines.errors import InputError
from pipelines.histories import shards
from pipelines.logs import files as logs
from pipelines.logs.validate import ValidationRules
from pipelines.schema import DS

_REFRESH = "run with --refresh-inputs to take the inputs as they are now"


def rules(day: Day) -> ValidationRules:
    """What makes a row of these logs a play."""
    configured = day.config.logs.model_dump(include={"play_events", "other_events", "max_late_days"})
    return ValidationRules(**configured, timezone=day.workspace.spec.timezone)


def freeze(day: Day) -> RunRecord:
    """The run record of this ds: the existing one if it is still valid, else a new one.

    Raises InputError if files of the record have changed since, if a file consumed by an earlier ds has changed, or if
    no log file landed since the parent. A record under which nothing was built, or which has no files, is replaced: the
    configuration or the logs were corrected, or the logs were late.
    """
    if day.has_record and not day.refresh_inputs and day.record.files and day.is_built:
        return _validated_record(day)
    earlier = _earlier_days(day)
    parent = day.manifest(earlier[-1]) if earlier else None
    spec = log_spec(day)
    files, known = _not_consumed(day, logs.discover(spec, before=day.ds), parent)
    catalogue = storage.list_files(storage.absolute(day.config.logs.catalogue)) if day.config.logs.catalogue else []
    record = day.new_record(
        parent_sequences=str(earlier[-1]) if earlier else None,
        vocabulary_version=delta_tables.version(day.workspace.vocabulary),
        parent_model=_parent_model(day),
        files=tuple(files),
        known_files=tuple(known),
        catalogue_files=tuple(logs.LogFile(file.uri, file.size, file.etag, landing_day="") for file in catalogue),
    )
    if not files:
        yesterday = "ds=YYYY-MM-DD" if parent is None else f"ds={day.ds - dt.timedelta(days=1)}"
        expected = yesterday if spec.partition == (DS,) else f"{spec.partition[0]}=..."
        since = "" if parent is None else f" since ds {parent.ds}"
        raise InputError(
            f"no play logs for ds {day.ds}: no new file landed{since}, expected some in "
            f"{storage.join(storage.absolute(spec.path), expected)}: wait for the logs, or correct logs.path"
        )
    return record


def _earlier_days(day: Day) -> list[dt.date]:
    """Every ds before this one whose shards are published, oldest first.

    Yesterday is asked for by name: the list of an object store may lack what was published a moment ago.
    """
    earlier = [ds for ds in day.workspace.days_with_sequences() if ds < day.ds]
    yesterday = day.ds - dt.timedelta(days=1)
    if yesterday not in earlier and storage.is_s3(day.workspace.uri) and day.workspace.has_sequences(yesterday):
        earlier.append(yesterday)
    return earlier


def parent_manifest(day: Day, record: RunRecord) -> shards.Manifest | None:
    """The manifest whose shards are merged into; InputError if it was built with other settings than the present."""
    if record.parent_sequences is None:
        return None
    parent = day.manifest(dt.date.fromisoformat(record.parent_sequences))
    for name in ("max_history", "session_gap_s"):
        configured = getattr(day.config.sequences, name)
        if getattr(parent, name) != configured:
            raise InputError(
                f"sequences.{name} is {configured}, but the shards of ds {parent.ds} were made with "
                f"{getattr(parent, name)}: set it back, or build all histories anew in another --workspace"
            )
    return parent


def _validated_record(day: Day) -> RunRecord:
    record = day.record
    if problems := logs.changed(record.files):
        raise InputError(f"{problems[0]} since the run record of ds {day.ds} was made: restore it, or {_REFRESH}")
    return record


def _not_consumed(
    day: Day, files: list[logs.LogFile], parent: shards.Manifest | None
) -> tuple[list[logs.LogFile], list[logs.LogFile]]:
    """The files that no earlier ds has consumed, and those that hold only rows that one has consumed in other files.

    InputError if a consumed file has changed since.
    """
    if parent is None:
        return files, []
    table = shards.read_listed(parent, parent.inputs, ["uri", "size", "etag"])
    uris, sizes, etags = (column.to_pylist() for column in table.columns)
    consumed = dict(zip(located(uris, day.places), zip(sizes, etags, strict=True), strict=True))
    for file in files:
        if file.uri in consumed and consumed[file.uri] != (file.size, file.etag):
            raise InputError(
                f"{file.uri} has changed since an earlier ds took it in ({consumed[file.uri][0]} bytes then, "
                f"{file.size} now): restore it and put new rows in a new file, or start another --workspace"
            )
    fresh = [file for file in files if file.uri not in consumed]
    sources = logs.rewritten(log_spec(day)) if fresh else {}
    new: dict[str, logs.LogFile] = {}
    known = []
    for file in fresh:
        unseen = _unseen(file.uri, sources, set(consumed))
        if not unseen:
            known.append(file)
            continue
        # What maintenance put together with consumed rows is read where it was before, while that is still there.
        there = storage.file_infos(unseen)
        if unseen != [file.uri] and all(there):
            known.append(file)
            found = [logs.LogFile(f.uri, f.size, f.etag, file.landing_day) for f in there if f]
        else:
            found = [file]
        new |= {one.uri: one for one in found}
    return list(new.values()), known


def _unseen(uri: str, sources: Mapping[str, Sequence[str]], consumed: Collection[str]) -> list[str]:
    """The files in which rows of a file first came that are not consumed."""
    if uri in consumed:
        return []
    if not sources.get(uri):
        return [uri]
    return sorted({first for source in sources[uri] for first in _unseen(source, sources, consumed)})


def _parent_model(day: Day) -> str | None:
    """Version of the champion that training may start from; None if there is no registry yet."""
    local = not day.config.mlflow.tracking_uri
    if local and (storage.is_s3(day.workspace.uri) or not storage.exists(day.workspace.registry)):
        return None  # a look-up would create the database, or fail without a server, which this stage does not need
    from jobs.registry.versions import champion

    info = champion(day)
    return info.version if info else None
