"""`fuxi sessionize`: the new play logs of a day, cleaned and merged into every listener's history."""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.day import Day, lease_uri, log_spec, running
from jobs.places import portable
from jobs.runtime.console import log
from jobs.runtime.engines import spark_progress, spark_session
from jobs.runtime.resources import Usage
from jobs.stages import quality_gate
from jobs.stages.inputs import freeze, parent_manifest, rules
from jobs.training.side import songs_of_catalogue
from pipelines import digests, storage
from pipelines.errors import InputError
from pipelines.forget import blocklist
from pipelines.histories import shards, vocabulary
from pipelines.histories.build import build_shards, plan_shuffle
from pipelines.histories.publish import BuildSpec, BuiltShards, publish_shards
from pipelines.logs import files as logs
from pipelines.logs.quality import DayStats
from pipelines.logs.validate import Cleaned, CleanSpec, clean

TEMPORARY_SHARE = 1.5
"""Upper bound of the shuffle's files, as a multiple of the size of the logs."""
SHARD_ROW_BYTES = 8
"""Upper bound of the average size of a play in the shards."""


def run(day: Day) -> dict[str, Any]:
    """Freeze the inputs of this ds, then publish its shards; the manifest is the last write."""
    record = freeze(day)
    parent = parent_manifest(day, record)
    files = record.files
    splits = logs.plan(log_spec(day), files)
    log("sessionize", ds=day.ds, files=len(files), parent=record.parent_sequences or "none: from all logs")
    if units := sorted({split.unit for split in splits} - {"s"}):
        log("times that are numbers", unit=", ".join(units), setting="logs.timestamp_unit")
    needs = _check_space(day, files, splits)
    staging = storage.join(day.workspace.run(day.ds), "staging")
    storage.delete_folder(staging)
    storage.make_folder(staging)
    with Usage() as usage:
        try:
            counts, manifest, temporary = _sessionize(day, parent, files, splits, staging)
        except Exception as error:
            error.add_note(needs)  # for one line, if the disk was full
            raise
        finally:
            storage.delete_folder(staging)
    figures = _figures(counts, files, temporary, usage)
    log("sessionized", **figures)
    return {**counts, "listeners": manifest.rows, "events": manifest.events, "files": len(manifest.files), **figures}


def _sessionize(
    day: Day, parent: shards.Manifest | None, files: Sequence[logs.LogFile], splits: list[logs.Split], staging: str
) -> tuple[dict[str, Any], shards.Manifest, int]:
    """The two Spark stages, and the manifest. Returns counts, manifest and the bytes that went through staging."""
    spark = spark_session(day.config.cluster)
    rows = sum(split.rows for split in splits)
    shuffle = plan_shuffle(
        day.workspace.spec.buckets,
        rows,
        stored=parent.events if parent else 0,
        parallelism=spark.sparkContext.defaultParallelism,
        max_history=day.config.sequences.max_history,
    )
    blocked, quarantine = blocklist.load(day.workspace.forgotten), day.workspace.quarantine(day.ds)
    spec = CleanSpec(log_spec(day), rules(day), shuffle, staging, quarantine, _attempt(day), blocked)
    with spark_progress(spark, "reading play logs", rows, "rows") as finished:
        cleaned = clean(spark, spec, splits, finished=finished)
    stats = quality_gate.day_stats(day, cleaned, parent)
    _enforce_bounds(day, stats, cleaned)
    songs = vocabulary.append(
        day.workspace.vocabulary,
        _with_catalogue(day, cleaned.item_ids),
        ds=day.ds,
        item_id_type=spec.logs.item_id_type,
        run_id=day.record.run_id,
        before=(parent.vocabulary_size, parent.vocabulary_sha256) if parent else (0, ""),
        version=parent.vocabulary_version if parent else None,
    )
    index = songs.lookup(cleaned.item_ids)
    target = build_spec(day, songs, parent, played=index)
    with spark_progress(spark, "building sequences", target.buckets, "buckets") as finished:
        built = build_shards(spark, target, shuffle, cleaned.runs, index, staging=staging, finished=finished)
    counts = _counts(day, cleaned, built, songs)
    stats = replace(stats, duplicates=counts["duplicates"], listeners=sum(file.rows for file in built.files))
    counts["accepted_quality"] = _enforce_bounds(day, stats, cleaned, target)
    manifest = publish(day, target, built, [*files, *day.record.known_files], counts)
    counts |= {"shards": shards.content_digest(manifest)}
    counts |= {"parent_shards": shards.content_digest(parent)} if parent else {}
    _remove_old_files(day, parent, manifest)
    _keep_only(day.workspace.quarantine(day.ds), cleaned.quarantined)
    digests.write_digests(day.workspace.quarantine(day.ds), name=digests.NOTED_FILE, files=cleaned.quarantined)
    return counts, manifest, sum(run.bytes for run in cleaned.runs)


def _with_catalogue(day: Day, played: pa.Array) -> pa.Array:
    """Distinct songs that were played, and those of the catalogue if the model can list them by side information."""
    known = songs_of_catalogue(day)
    return played if known is None else pc.unique(pa.concat_arrays([played, known.cast(played.type)]))


def _check_space(day: Day, files: Sequence[logs.LogFile], splits: list[logs.Split]) -> str:
    """What the day needs. InputError, before anything is written, if the disk is too small for runs and new shards."""
    free = storage.free_bytes(day.workspace.uri)
    temporary = TEMPORARY_SHARE * sum(file.size for file in files)
    need = int(temporary + SHARD_ROW_BYTES * sum(split.rows for split in splits))
    needs = f"ds {day.ds} needs {storage.in_words(need)} ({storage.in_words(temporary)} of it for a while)"
    if free is not None and free < need:
        raise InputError(
            f"{day.workspace.uri}: {storage.in_words(free)} free, {needs}: free some space, or use another --workspace"
        )
    return needs


def _figures(counts: dict[str, Any], files: Sequence[logs.LogFile], temporary: int, usage: Usage) -> dict[str, Any]:
    """What the stage took, of this machine; on a cluster the executors' processors are in task_cpu_s alone."""
    million = max(counts["rows_read"], 1) / 1e6
    return {
        "wall_s": round(usage.seconds, 1),
        "cpu_s": round(usage.cpu_seconds, 1),
        "cpu_s_per_million_rows": round(usage.cpu_seconds / million, 3),
        "peak_gb": round(usage.gigabytes, 2),
        "input_bytes": sum(file.size for file in files),
        "temporary_bytes": temporary,
    }


def _enforce_bounds(day: Day, stats: DayStats, cleaned: Cleaned, built: BuildSpec | None = None) -> list[str]:
    """The quality gate: before the vocabulary is extended, and again, on what was `built`, before that is published.

    Returns what was overridden. Of a refused day the quarantine and its rows of `quality` stay; of a published ds, what
    its run had rejected.
    """
    try:
        return quality_gate.enforce_bounds(day, stats)
    except InputError:
        folder, kept = day.workspace.quarantine(day.ds), cleaned.quarantined
        if day.ds in day.workspace.days_with_sequences():
            kept = [file.uri for file in storage.list_files(folder) if file.uri not in set(kept)]
        _keep_only(folder, kept)
        if built:
            own = (file.uri for file in storage.list_files(built.folder) if built.attempt in file.uri)
            storage.delete_files(own, missing_ok=True)
        raise


def _remove_old_files(day: Day, *manifests: shards.Manifest | None) -> None:
    """Delete what earlier runs of this ds, and of its parent, left; but nothing while another run may read it.

    Whoever reads shards holds a lease. So a run that holds none yet will read what is published now, and the next run
    deletes what this one leaves.
    """
    old = {uri for manifest in manifests if manifest for uri in shards.unlisted(manifest)}
    if not old:
        return
    if held := running(day.workspace, besides=[lease_uri(day.workspace, day.ds)]):
        log("old shards are left to the next run", files=len(old), held=held[0], by=held[1])
        return
    storage.delete_files(old, missing_ok=True)  # a killed task's file may just have got its name, or have gone


def build_spec(
    day: Day, songs: vocabulary.Vocabulary, parent: shards.Manifest | None, *, played: pa.Table
) -> BuildSpec:
    """How the shards of this ds are made, under new file names. played: the songs of its plays, of `songs.lookup`."""
    fixed = day.workspace.spec
    size = songs.size_for(day.ds, played, at_least=parent.vocabulary_size if parent else 0)
    kept = {"max_history", "session_gap_s", "row_group_events", "max_increments"}
    return BuildSpec(
        folder=day.workspace.sequences(day.ds),
        ds=day.ds,
        data_end=day.calendar.day_start(day.ds),
        vocabulary_size=size,
        vocabulary_version=songs.version or 0,
        vocabulary_sha256=songs.digest(size),
        run_id=day.record.run_id,
        attempt=_attempt(day),
        buckets=fixed.buckets,
        user_id_type=fixed.user_id_type,
        item_id_type=fixed.item_id_type,
        timezone=fixed.timezone,
        parent=parent,
        **day.config.sequences.model_dump(include=kept),
    )


def _attempt(day: Day) -> str:
    """Part of names of files: new for every run of the stage, the same for all its executors and attempts of tasks."""
    return f"{day.record.run_id[:12]}-{uuid.uuid4().hex[:8]}"


def _counts(day: Day, cleaned: Cleaned, built: BuiltShards, songs: vocabulary.Vocabulary) -> dict[str, Any]:
    return {
        "rows_read": cleaned.rows_read,
        "accepted": cleaned.accepted,
        "ignored": cleaned.ignored,
        "forgotten": cleaned.forgotten,
        "duplicates": cleaned.duplicates + built.duplicates,
        "rejected": dict(sorted(cleaned.rejected.items())),
        "songs": songs.size(day.ds),
        "new_songs": songs.new_on(day.ds),
        "task_cpu_s": round(cleaned.task_seconds + built.task_seconds, 1),
        "written_bytes": built.written_bytes,
    }


def publish(
    day: Day, target: BuildSpec, built: BuiltShards, files: Iterable[logs.LogFile], counts: dict[str, Any]
) -> shards.Manifest:
    """Publish the shards, and note in `counts` how many songs have enough listeners to be trained on."""
    listeners = target.listeners_before() + built.listeners
    counts["eligible_songs"] = int((listeners >= day.config.train.min_listeners).sum())
    inputs = shards.inputs_table(portable([asdict(file) for file in files], day.places))
    return publish_shards(target, built, inputs=inputs, counts=counts)


def _keep_only(folder: str, kept: Iterable[str]) -> None:
    wanted = set(kept)
    others = (file.uri for file in storage.list_files(folder) if file.uri not in wanted)
    storage.delete_files(others, missing_ok=True)
