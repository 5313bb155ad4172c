"""`fuxi train`: fit FuXi-beta on the shards of a ds with Ray Train, export it, register it as challenger.

Checkpoints are named by the run record and by what the stage is made from. A worker that dies is replaced, a driver
that dies is run again, and both continue from the newest complete checkpoint. A model is registered once: trained again
to the same weights it is the version that it was, to others a new one.
"""

import dataclasses
import datetime as dt
import hashlib
import tempfile
import time
from pathlib import Path

import numpy as np

from fuxi_beta.data.side import KnownSongs
from jobs.day import Day, StageResult, digest
from jobs.registry import versions
from jobs.runtime import kernels
from jobs.runtime.console import doing, log
from jobs.training.position import CheckpointPosition, check_checkpoint
from jobs.training.ray import fit
from jobs.training.resume import recover
from jobs.training.side import side_of
from jobs.training.worker import LoopConfig
from pipelines import storage
from pipelines.errors import InputError
from pipelines.histories.shards import Manifest


def run(day: Day) -> StageResult:
    """Train on the shards of `day.ds`. Returns what later stages and the report need (see `_result`)."""
    started = time.time()
    manifest = day.manifest(day.ds)
    checkpoints = day.path("checkpoints")
    name = _run_name(day, checkpoints)
    if day.force and "train" not in day.begun and day.has_finished_before("train"):
        storage.delete_folder(storage.join(checkpoints, name))  # it has finished: start again instead of resuming
    with doing("reading what there is to learn from"):
        parent, folder = _parent(day, manifest)
        songs = _known_songs(day, manifest, folder)
    resume = recover(storage.join(checkpoints, name))
    since = _data_start(day, manifest, parent)
    loop = _loop_config(day, manifest, folder, songs=songs, resume=resume, data_start=since)
    kernels.prepare_for_training(day.config.cluster)
    last = fit(day.config.cluster, loop, storage_uri=checkpoints, name=name)
    ended = time.time()
    with tempfile.TemporaryDirectory() as scratch, last.as_directory() as checkpoint:
        check_checkpoint(checkpoint)
        position = CheckpointPosition.read(checkpoint)
        for rollback in position.rollbacks:
            log("training went back to a checkpoint and skipped the steps behind it", **rollback)
        if not position.positions:
            raise InputError(f"{manifest.folder}: no listener has a play to learn from {_period(loop)}: add logs")
        exported = _export(day, loop, checkpoint, scratch, songs=songs, parent=parent)
        run_key = f"{day.record.run_id}-{_content_key(scratch)}"
        export = day.path(f"export-{day.record.run_id}")
        storage.delete_folder(export)
        storage.upload_folder(scratch, export)
    result: StageResult = {**_result(loop, position, parent), **exported, "export": export}
    with doing("registering the model in MLflow"):
        mlflow_run_id = versions.log_training(
            day,
            result["parameters"],
            position.curve,
            run_key=run_key,
            metrics={"events_per_s": result["events_per_s"], "rollbacks": len(position.rollbacks)},
        )
        version = versions.register_challenger(day, export, mlflow_run_id=mlflow_run_id, run_key=run_key)
    overhead = {
        "seconds_to_first_step": round(max(position.first_step_at - started, 0), 1),  # 0: all steps were taken before
        "seconds_after_last_step": round(ended - max(position.last_step_at, started), 1),
        "seconds_to_register": round(time.time() - ended, 1),
    }
    return result | {"model_version": version, "mlflow_run_id": mlflow_run_id, "overhead": overhead}


def _run_name(day: Day, checkpoints: str) -> str:
    """The name of a training, under which it resumes."""
    record = day.record
    earlier = f"{record.run_id}-{day.config.hash()}"  # by a release before 0.3
    sessionized = day.marker("sessionize")
    if sessionized and "inputs" not in sessionized and storage.exists(storage.join(checkpoints, earlier)):
        return earlier
    return f"{record.run_id}-{digest(day.inputs('train'))}"


def _content_key(folder: str) -> str:
    """A number that tells models apart: their tensors and settings, without the notes of how they came to be."""
    from fuxi_beta.training.checkpoint import CONFIG_FILE

    config = storage.read_json(storage.join(storage.absolute(folder), CONFIG_FILE))
    content: list[object] = [{key: value for key, value in config.items() if key != "metadata"}]
    for file in sorted(path for path in Path(folder).iterdir() if path.suffix != ".json"):
        with file.open("rb") as stream:
            content.append((file.name, hashlib.file_digest(stream, "sha256").hexdigest()))
    return digest(content)


def _known_songs(day: Day, manifest: Manifest, parent: str) -> KnownSongs:
    """The candidates of the day's training and its side information. parent: as in `LoopConfig`."""
    from fuxi_beta.data.candidates import candidates_and_plays
    from fuxi_beta.training.checkpoint import load_side_vocabulary

    train, cut = day.config.train, _data_end(day, manifest)
    candidates, plays = candidates_and_plays(manifest, train=train, data_end=cut)
    if np.count_nonzero(candidates) < 2:
        raise InputError(
            f"{manifest.folder}: {np.count_nonzero(candidates)} songs have train.min_listeners ({train.min_listeners}) "
            f"listeners and a play before {dt.datetime.fromtimestamp(cut, dt.UTC):%F %R} UTC: add logs or lower it"
        )
    rows = load_side_vocabulary(parent) if parent else None
    return KnownSongs(candidates, plays, side_of(day, candidates=candidates, played=plays > 0, cut=cut, parent=rows))


def _data_end(day: Day, manifest: Manifest) -> int:
    """Unix second before which every target is."""
    if day.config.train.protocol == "next_day":
        return day.calendar.day_start(day.ds - dt.timedelta(days=1))
    return manifest.data_end


def _data_start(day: Day, manifest: Manifest, parent: str | None) -> int:
    """Unix second from which plays are targets: with `train.incremental` where the parent's training ended, else 0."""
    if not (parent and day.config.train.incremental):
        return 0
    start = versions.version_info(day, parent).data_end
    if start < _data_end(day, manifest):
        return start
    log(
        "all plays are learned from", reason=f"train.incremental is on, but version {parent} was trained on all of them"
    )
    return 0


def _period(loop: LoopConfig) -> str:
    """When the targets of a training are."""
    since = f"since {dt.datetime.fromtimestamp(loop.data_start, dt.UTC):%F %R} UTC and " if loop.data_start else ""
    return f"{since}before the training cut"


def _loop_config(
    day: Day,
    manifest: Manifest,
    parent: str,
    *,
    songs: KnownSongs | None = None,
    resume: str = "",
    data_start: int = 0,
) -> LoopConfig:
    from fuxi_beta.training.item_table import capacity_rows

    config, train = day.config, day.config.train
    songs = songs or _known_songs(day, manifest, parent)
    side = day.path("side.safetensors") if songs.side else ""
    if songs.side:
        songs.side.write(side)
    return LoopConfig(
        manifest=manifest,
        model=config.model,
        train=train,
        data_end=_data_end(day, manifest),
        data_start=data_start,
        request_hour=config.serving.request_hour,
        rows=capacity_rows(manifest.vocabulary_size, train.capacity_margin),
        candidates=songs.candidates,
        plays=songs.plays,
        parent=parent,
        resume=resume,
        progress=day.path("train_progress.json"),
        threads=config.cluster.train_cpus_per_worker,
        deterministic=config.deterministic,
        kernels=config.cluster.kernels,
        side=side,
    )


def _parent(day: Day, manifest: Manifest) -> tuple[str | None, str]:
    """Version and export of the model to start from, chosen once per run record; None and "" for a cold start."""
    from fuxi_beta.training.checkpoint import load_export

    version = _frozen_parent(day)
    if not version:
        return None, ""
    folder = versions.download_model(day, version)
    parent = load_export(folder)
    contained = day.config.model.contains(parent.model_config)
    if not contained or parent.vocabulary_size > manifest.vocabulary_size:
        reason = "a larger vocabulary" if contained else "another model shape"
        log("cold start", reason=f"model version {version} has {reason}")
        return None, ""
    if day.config.cluster.ray_address == "local":
        return version, folder
    shared = day.path(f"parent-{version}")  # where workers of a cluster can read it
    storage.upload_folder(folder, shared)
    return version, shared


def _frozen_parent(day: Day) -> str:
    """Version of the model to start from, empty for a cold start; from the run record, once it is there."""
    record = day.record
    if record.parent_model is not None and record.full_retrain is not None:
        return record.parent_model
    version = record.parent_model
    if version is None:
        champion = versions.champion(day)
        version = champion.version if champion else ""
    reason = _full_retrain(day) if version else ""
    if reason:
        log("full retrain", reason=reason)
        version = ""
    day.update_record(parent_model=version, full_retrain=reason)
    return version


def _full_retrain(day: Day) -> str:
    """Why a day trains from nothing although there is a champion; "" if it starts from the champion's weights."""
    every, last = day.config.train.full_every_days, versions.last_full_training(day)
    if every and (last is None or (day.ds - last).days >= every):
        return f"the last full retrain is of {last or 'no day'}, train.full_every_days is {every}"
    before = (day.at(ds) for ds in reversed(day.workspace.days("runs")) if ds < day.ds)
    decided = (other for other in before if other.has_record)
    newest = next((other for other in decided if other.record.full_retrain is not None or other.marker("train")), None)
    if newest is None:
        return ""
    promoted = newest.result("promote")
    return promoted.get("full_retrain", "") if promoted else newest.record.full_retrain or ""


def _export(
    day: Day, loop: LoopConfig, checkpoint: str, folder: str, *, songs: KnownSongs, parent: str | None
) -> StageResult:
    """Write the export of a finished run to a local folder; returns its candidates and its learned temporal curves."""
    from fuxi_beta.training.checkpoint import save_export
    from fuxi_beta.training.trainer import trained_model

    information = songs.information
    trained, state = trained_model(
        checkpoint, model=loop.model, train=loop.train, candidates=loop.candidates, information=information
    )
    trained = trained.as_of(day.calendar.request_time(day.ds))
    trained = dataclasses.replace(
        trained,
        ds=str(day.ds),
        data_end=loop.data_end,
        request_hour=loop.request_hour,
        metadata={
            "run_id": day.record.run_id,
            "config_hash": day.config.hash(),
            "vocabulary_version": loop.manifest.vocabulary_version,
            "warm_started_from": parent,
        },
    )
    vocabulary = information.vocabulary if information else None
    save_export(folder, trained, train_state=state, side_vocabulary=vocabulary)
    curves = trained.model.temporal_curves()
    layers = [{"layer": layer, "a": a, "b": b} for layer, (a, b) in enumerate(curves, start=1)]
    return {"candidates": int(trained.candidates.sum()), "temporal": layers}


def _result(loop: LoopConfig, position: CheckpointPosition, parent: str | None) -> StageResult:
    return {
        "epochs": position.epoch,
        "steps": position.steps,
        "samples": position.samples,
        "resumed_at": position.resumed_at,
        "rollbacks": position.rollbacks,
        "kernels": position.kernels,
        "events_per_s": round(position.events / max(position.seconds, 1e-9)),
        "waiting_share": round(position.waited / max(position.seconds, 1e-9), 4),  # of the time, waiting for the reader
        "seconds_per_epoch": position.seconds_per_epoch,
        "loss_curve": position.curve,
        "final_loss": position.epoch_losses[-1],  # mean over all positions of the last epoch
        "warm_started_from": parent,
        "data_start": loop.data_start,
        "parameters": {
            **{f"model.{key}": value for key, value in dataclasses.asdict(loop.model).items()},
            **{f"train.{key}": value for key, value in dataclasses.asdict(loop.train).items()},
            "data_ds": str(loop.manifest.ds),
            "data_run_id": loop.manifest.run_id,
            "vocabulary_version": loop.manifest.vocabulary_version,
            "vocabulary_size": loop.manifest.vocabulary_size,
            "parent_model": parent or "",
        },
    }
