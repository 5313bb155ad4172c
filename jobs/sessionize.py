"""`fuxi sessionize`: the new play logs of a day, cleaned and merged into every listener's history."""

import uuid
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from jobs.console import log
from jobs.day import Day
from jobs.engines import spark_progress, spark_session
from jobs.inputs import freeze, log_files, log_spec, parent_manifest, rules
from pipelines import logs, shards, storage, vocabulary
from pipelines.build import BuildSpec, Built, build_shards
from pipelines.interactions import Cleaned, clean
from pipelines.schema import InputError


def run(day: Day) -> dict[str, Any]:
    """Freeze the inputs of this ds, then publish its shards; the manifest is the last write."""
    record = freeze(day)
    parent = parent_manifest(day, record)
    spec, files = log_spec(day), log_files(record)
    splits = logs.plan(spec, files)
    log("sessionize", ds=day.ds, files=len(files), parent=record.parent_sequences or "none: from all logs")
    staging = storage.join(day.workspace.run(day.ds), "staging")
    storage.delete_folder(staging)
    spark = spark_session(day.config.cluster)
    try:
        with spark_progress(spark, "reading play logs", len(splits), "files") as finished:
            cleaned = clean(
                spark,
                spec,
                rules(day),
                splits,
                staging=staging,
                quarantine=day.workspace.quarantine(day.ds),
                finished=finished,
            )
        _check_quality(day, cleaned)
        songs = vocabulary.append(
            day.workspace.vocabulary,
            cleaned.item_ids,
            ds=day.ds,
            item_id_type=spec.item_id_type,
            run_id=record.run_id,
        )
        target = build_spec(day, record.run_id, songs, parent)
        with spark_progress(spark, "building sequences", target.buckets, "buckets") as finished:
            built = build_shards(spark, target, cleaned.staged, songs.lookup(cleaned.item_ids), finished=finished)
    finally:
        storage.delete_folder(staging)
    counts = _counts(day, cleaned, built, songs)
    manifest = publish(day, target, built, files, songs, counts)
    shards.remove_unlisted(manifest)
    _keep_only(day.workspace.quarantine(day.ds), cleaned.quarantined)
    return {**counts, "listeners": manifest.rows, "events": manifest.events, "files": len(manifest.files)}


def _check_quality(day: Day, cleaned: Cleaned) -> None:
    """Refuse a day without plays or with too many bad rows. Then only its quarantine shows that we were here."""
    problem = ""
    limit = day.config.logs.max_rejected_share
    if cleaned.rejected_share > limit:
        reasons = ", ".join(f"{reason} {count}" for reason, count in cleaned.rejected.most_common())
        problem = (
            f"ds {day.ds}: {cleaned.rejected.total()} of {cleaned.rows_read} rows were rejected "
            f"({cleaned.rejected_share:.0%}, logs.max_rejected_share allows {limit:.0%}): {reasons}; "
            "correct the logs and run with --refresh-inputs"
        )
    elif not cleaned.accepted:
        problem = (
            f"ds {day.ds}: the new log files hold no plays ({cleaned.rows_read} rows, {cleaned.ignored} other events): "
            "complete the logs and run with --refresh-inputs"
        )
    if not problem:
        return
    published = day.ds in day.workspace.days_with_sequences()
    kept = cleaned.quarantined
    if published:
        kept = [f.uri for f in storage.list_files(day.workspace.quarantine(day.ds)) if f.uri not in set(kept)]
    _keep_only(day.workspace.quarantine(day.ds), kept)
    raise InputError(problem)


def build_spec(day: Day, run_id: str, songs: vocabulary.Vocabulary, parent: shards.Manifest | None) -> BuildSpec:
    """How the shards of this ds are made, under new file names."""
    configured, fixed = day.config.sequences, day.workspace.spec
    return BuildSpec(
        folder=day.workspace.sequences(day.ds),
        run=f"{run_id[:12]}-{uuid.uuid4().hex[:8]}",
        buckets=fixed.buckets,
        max_history=configured.max_history,
        session_gap_s=configured.session_gap_s,
        row_group_events=configured.row_group_events,
        user_id_type=fixed.user_id_type,
        item_id_type=fixed.item_id_type,
        vocabulary_size=songs.size(day.ds),
        parent=parent,
    )


def _counts(day: Day, cleaned: Cleaned, built: Built, songs: vocabulary.Vocabulary) -> dict[str, Any]:
    return {
        "rows_read": cleaned.rows_read,
        "accepted": cleaned.accepted,
        "ignored": cleaned.ignored,
        "duplicates": built.duplicates,
        "rejected": dict(sorted(cleaned.rejected.items())),
        "songs": songs.size(day.ds),
        "new_songs": songs.new_on(day.ds),
    }


def publish(
    day: Day,
    target: BuildSpec,
    built: Built,
    files: Iterable[logs.LogFile],
    songs: vocabulary.Vocabulary,
    counts: dict[str, Any],
) -> shards.Manifest:
    """Write the two tables beside the shards, then the manifest that publishes all."""
    parent, listeners = target.parent, built.listeners
    consumed = shards.inputs_table([asdict(file) for file in files])
    if parent:
        before = shards.read_item_counts(parent)
        listeners[: len(before)] += before
        consumed = pa.concat_tables([storage.read_table(parent.uri(parent.inputs)), consumed])
    counts["eligible_songs"] = int((listeners >= day.config.train.min_listeners).sum())
    manifest = shards.Manifest(
        ds=day.ds,
        run_id=day.record.run_id,
        parent=parent.ds if parent else None,
        buckets=target.buckets,
        max_history=target.max_history,
        session_gap_s=target.session_gap_s,
        user_id_type=target.user_id_type,
        item_id_type=target.item_id_type,
        timezone=day.workspace.spec.timezone,
        vocabulary_version=songs.version or 0,
        vocabulary_size=target.vocabulary_size,
        data_end=day.workspace.calendar.day_start(day.ds),
        item_counts=f"item_counts-{target.run}.parquet",
        inputs=f"inputs-{target.run}.parquet",
        files=built.files,
        counts=counts,
    )
    shards.write_item_counts(storage.join(target.folder, manifest.item_counts), listeners)
    storage.write_table(storage.join(target.folder, manifest.inputs), consumed)
    return shards.write_manifest(target.folder, manifest)


def _keep_only(folder: str, kept: Iterable[str]) -> None:
    """Remove the files of a folder that are not in `kept`."""
    wanted = set(kept)
    storage.delete_files(file.uri for file in storage.list_files(folder) if file.uri not in wanted)
