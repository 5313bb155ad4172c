"""What killed runs left: files that nothing names, temporary ones, unfinished uploads, MLflow's runs without an end."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines import delta_tables, object_store, storage
from pipelines.digests import FileSelector
from pipelines.histories import shards

MEMORY = Path("/dev/shm")


def of_workspace(day: Any) -> list[str]:
    """Paths below a workspace, and records of its registry, that no undisturbed run leaves. day: a `jobs.day.Day`."""
    found = [*_temporary(day.workspace.uri), *_shards(day), *_table_files(day), *_of_training(day), *_of_registry(day)]
    if storage.is_s3(day.workspace.uri):
        found += _uploads(day.workspace.uri)
    return [line.removeprefix(f"{day.workspace.uri}/") for line in found]


def of_host(scratch: Path) -> list[str]:
    """Entries of a run's folder for temporary files; Spark, Ray and Python make theirs there."""
    return sorted(str(entry) for entry in scratch.iterdir())


def in_memory() -> set[str]:
    """Names in shared memory."""
    return {entry.name for entry in MEMORY.iterdir()} if MEMORY.is_dir() else set()


def _temporary(root: str) -> Iterator[str]:
    fs, path = storage.filesystem(root)
    for info in fs.get_file_info(FileSelector(path, recursive=True, allow_not_found=True)):
        below = info.path[len(path) :].strip("/")
        if info.is_file and (below.endswith(".tmp") or ".tmp-" in below or "/staging/" in below):
            yield storage.join(root, below)


def _shards(day: Any) -> Iterator[str]:
    """Files of histories that no manifest lists."""
    days: list[dt.date] = day.workspace.days_with_sequences()
    listed = set().union(*(shards.listed_uris(shards.read_manifest(day.workspace.sequences(ds))) for ds in days))
    for ds in day.workspace.days("sequences"):
        yield from (file.uri for file in storage.list_files(day.workspace.sequences(ds)) if file.uri not in listed)


def _table_files(day: Any) -> Iterator[str]:
    """Data files below the Delta tables that no version names."""
    for uri, _ in day.workspace.tables():
        if (table := delta_tables.open_table(uri)) is not None:
            versions = delta_tables.versions_to_keep(table, since=dt.datetime.fromtimestamp(0, dt.UTC))
            yield from (file.uri for file in delta_tables.files_of_no_version(uri, table, versions, min_age_hours=0))


def _of_training(day: Any) -> Iterator[str]:
    """Checkpoints and exports beyond those of one training a day."""
    for ds in day.workspace.days("runs"):
        folder, checkpoints = day.workspace.run(ds), storage.join(day.workspace.run(ds), "checkpoints")
        runs = storage.list_folders(checkpoints)
        yield from (storage.join(checkpoints, name) for name in runs[1:])
        for name in runs:
            kept = [
                one for one in storage.list_folders(storage.join(checkpoints, name)) if one.startswith("checkpoint_")
            ]
            yield from (storage.join(checkpoints, name, one) for one in kept[:-2])
        exports = [name for name in storage.list_folders(folder) if name.startswith("export-")]
        yield from (storage.join(folder, name) for name in exports[1:])


def _of_registry(day: Any) -> Iterator[str]:
    """Runs of MLflow that have not ended, and logged models that are no version."""
    from mlflow import MlflowClient

    client = MlflowClient(day.tracking_uri, day.tracking_uri)  # the process may have opened another registry
    experiment = client.get_experiment_by_name(day.config.mlflow.model_name)
    if experiment is None:
        return
    for run in client.search_runs([experiment.experiment_id]):
        if run.info.status != "FINISHED":
            yield f"MLflow run {run.info.run_id} is {run.info.status}"
    versions = client.search_model_versions(f"name = '{day.config.mlflow.model_name}'")
    sources = " ".join(str(version.source) for version in versions)
    for model in client.search_logged_models([experiment.experiment_id]):
        if model.model_id not in sources:
            yield f"MLflow model {model.model_id} ({model.status}) is no version"


def _uploads(uri: str) -> Iterator[str]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    for upload in object_store.client().list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads", []):
        yield f"unfinished upload {upload['Key']}"
