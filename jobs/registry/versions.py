"""The model registry in MLflow: training runs, versions of the daily model, and which of them may serve a day.

A version carries the tags `run_key` (what it was trained from), `ds`, `data_end`, `protocol` and `warm_started_from`
(a version, or `none`: a full retrain); promotion adds `promoted_ds`. Stages find versions by tag, never by alias:
aliases are for people and other services.
"""

import contextlib
import datetime as dt
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.day import Day
from jobs.registry.database import ensure_database
from jobs.registry.package import FROM_NOTHING, log_pyfunc
from jobs.registry.relocate import ARTIFACTS, relocate
from pipelines import leases, storage
from pipelines.errors import InputError
from pipelines.redact import redact, redacted

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

CHALLENGER, CHAMPION = "challenger", "champion"
WITHDRAWN = "withdrawn"
"""Tag of a version that an operator took out of service (`jobs.registry.steering`)."""


@dataclass(frozen=True)
class ModelVersionInfo:
    """A registered version. `data_end` is in Unix seconds, UTC: every training target is before it."""

    version: str
    ds: dt.date
    data_end: int
    run_key: str
    protocol: str
    promoted_ds: dt.date | None
    withdrawn: str  # the date on which an operator took it out of service; ""
    full: bool  # trained from nothing, over the whole history; False of versions by releases that did not note it


def log_training(
    day: Day,
    params: Mapping[str, object],
    curve: Sequence[Sequence[float]],
    *,
    run_key: str,
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
) -> str:
    """Note a training run in MLflow and return its run id; the run with the same `run_key` is reused.

    params: name -> value. curve: [[step, loss], ...], logged as `loss`. metrics: single values (events_per_s, ...).
    """
    from mlflow.entities import Metric, Param

    client = _client(day)
    experiment = _experiment(day, client)
    quoted = run_key.replace("'", "")
    finished = client.search_runs([experiment], filter_string=f"tags.run_key = '{quoted}' and status = 'FINISHED'")
    if finished:
        return finished[0].info.run_id
    if left := client.search_runs([experiment], filter_string=f"tags.ds = '{day.ds}' and status != 'FINISHED'"):
        _remove_unregistered(day, client)
        for run in left:
            client.delete_run(run.info.run_id)
    run_id = client.create_run(
        experiment, run_name=f"train {day.ds}", tags=redacted({"run_key": run_key, "ds": str(day.ds), **(tags or {})})
    ).info.run_id
    now = int(time.time() * 1000)
    points = [Metric("loss", float(loss), now, int(step)) for step, loss in curve]
    points += [Metric(name, float(value), now, 0) for name, value in (metrics or {}).items()]
    named = [Param(name, redact(str(value))[:500]) for name, value in params.items()]
    for start in range(0, max(len(points), len(named)), 100):
        client.log_batch(run_id, metrics=points[start : start + 100], params=named[start : start + 100])
    client.set_terminated(run_id, "FINISHED")
    return run_id


def register_challenger(day: Day, export_folder: str, *, mlflow_run_id: str, run_key: str) -> str:
    """Register an export as a pyfunc version with alias `challenger` and return the version.

    The version that already has this `run_key` is returned as it is, so a repeated call adds nothing.
    export_folder: local folder or URI, as `fuxi_beta.training.checkpoint.save_export` wrote it.
    """
    client, name = _client(day), day.config.mlflow.model_name
    registered = [version for version in versions(day) if version.run_key == run_key]
    if registered:
        _forward_alias(day, CHALLENGER, registered[-1])
        return registered[-1].version
    _remove_unregistered(day, client)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "export")  # MLflow keeps the last part of its path as the artifact's name
        if storage.is_s3(export_folder):
            storage.download_folder(export_folder, str(folder))
        else:
            shutil.copytree(storage.absolute(export_folder), folder, copy_function=_link)
        model, tags = log_pyfunc(day, str(folder), scratch=scratch, mlflow_run_id=mlflow_run_id)
    _ensure_registered_model(client, name)
    noted = redacted({**tags, "run_key": run_key})
    with leases.publishing():
        version = client.create_model_version(
            name, source=model.model_uri, run_id=mlflow_run_id, model_id=model.model_id, tags=noted
        )
    info = version_info(day, str(version.version))
    _forward_alias(day, CHALLENGER, info)
    return info.version


def _remove_unregistered(day: Day, client: "MlflowClient") -> None:
    """Remove models of this ds that were logged and not registered, because their command was killed between.

    They may be of another run in MLflow: a training that goes on from a checkpoint can end with other last digits.
    """
    from mlflow.exceptions import MlflowException

    name, experiment = day.config.mlflow.model_name, _experiment(day, client)
    sources = " ".join(str(version.source) for version in client.search_model_versions(f"name = '{name}'"))
    with contextlib.suppress(MlflowException):  # a server of another release may not know of logged models
        runs = {run.info.run_id for run in client.search_runs([experiment], filter_string=f"tags.ds = '{day.ds}'")}
        for model in client.search_logged_models([experiment]):
            if model.model_id in sources or model.source_run_id not in runs:
                continue
            _delete_logged_model(day, model)


def versions(day: Day) -> list[ModelVersionInfo]:
    """Every version of the daily model, oldest first."""
    import mlflow

    _client(day)
    found = mlflow.search_model_versions(filter_string=f"name = '{day.config.mlflow.model_name}'")
    return sorted((_info(version) for version in found), key=lambda info: int(info.version))


def version_info(day: Day, version: str) -> ModelVersionInfo:
    """One version. InputError if it is not registered."""
    for info in versions(day):
        if info.version == str(version):
            return info
    name = day.config.mlflow.model_name
    raise InputError(
        f"model {name} has no version {version} at {redact(day.tracking_uri)}: run `fuxi train --ds {day.ds}` again"
    )


def champion(day: Day) -> ModelVersionInfo | None:
    """The newest version promoted on a day before `day.ds` whose training data end at or before ds - 1, 00:00.

    Later promotions do not count, so a day that is run again has the same champion as the first time.
    """
    return max(_promoted_before(day), key=promotion, default=None)


def reference(day: Day) -> ModelVersionInfo | None:
    """The last full retrain among the versions that `champion` chooses from: frozen, so no chain of warm starts creeps.

    Where no version says that it is one (releases before 0.3 did not note it), the first that was promoted: before it
    there was nothing to start from. None without any.
    """
    promoted = _promoted_before(day)
    full = [info for info in promoted if info.full]
    if full:
        return max(full, key=promotion)
    return min(promoted, key=promotion, default=None)


def promotion(info: ModelVersionInfo) -> tuple[str, int]:
    """Orders promoted versions by day, then by number."""
    return str(info.promoted_ds), int(info.version)


def _promoted_before(day: Day) -> list[ModelVersionInfo]:
    latest_end = day.calendar.day_start(day.ds - dt.timedelta(days=1))
    return [
        info
        for info in versions(day)
        if info.promoted_ds is not None
        and not info.withdrawn
        and info.promoted_ds < day.ds
        and info.data_end <= latest_end
        and info.protocol == day.config.train.protocol
    ]


def last_full_training(day: Day) -> dt.date | None:
    """The ds of the newest version before `day.ds` that was trained from nothing, promoted or not."""
    protocol = day.config.train.protocol
    trained = (info.ds for info in versions(day) if info.full and info.ds < day.ds and info.protocol == protocol)
    return max(trained, default=None)


def promote(day: Day, version: str) -> bool:
    """Tag a version as promoted on `day.ds` and move the alias `champion` to it, unless that is at a later ds.

    Returns whether the alias is at this version afterwards.
    """
    _set_tag(day, version, "promoted_ds", str(day.ds))
    if _forward_alias(day, CHAMPION, version_info(day, version)):
        _move_on_if_late(day)
    return alias_version(day, CHAMPION) == version


def _move_on_if_late(day: Day) -> None:
    """After the alias was moved: move it on if another run has promoted a later version meanwhile.

    MLflow has no conditional write, so a process that stood still between the look at the alias and its move may have
    moved it back, be its lease lost or not. Where it belongs follows from the tags alone, whoever moves it there.
    """
    client, name = _client(day), day.config.mlflow.model_name
    promoted = [info for info in versions(day) if info.promoted_ds and not info.withdrawn]
    newest = max(promoted, key=promotion, default=None)
    if newest is not None and newest.version != alias_version(day, CHAMPION):
        _retry(lambda: client.set_registered_model_alias(name, CHAMPION, newest.version))


def withdraw_promotions(day: Day, *, but: str | None) -> None:
    """Take back promotions on `day.ds` of other versions: the day was made again. but: the version that serves it.

    An alias `champion` at one of them moves to the day's champion; it stays if there is none.
    """
    client, name = _client(day), day.config.mlflow.model_name
    alias = alias_version(day, CHAMPION)
    for info in versions(day):
        if info.promoted_ds == day.ds and info.version != but:
            with leases.publishing():
                _retry(lambda info=info: client.delete_model_version_tag(name, info.version, "promoted_ds"))
            if info.version == alias and (serving := but or getattr(champion(day), "version", None)):
                set_alias(day, CHAMPION, serving)


def withdraw(day: Day, version: str) -> None:
    """Take a version out of service: it is never champion, reference or challenger again."""
    _set_tag(day, version, WITHDRAWN, str(day.calendar.date_of(int(time.time()))))


def _set_tag(day: Day, version: str, key: str, value: str) -> None:
    client, name = _client(day), day.config.mlflow.model_name
    with leases.publishing():
        _retry(lambda: client.set_model_version_tag(name, version, key, value))


def model_tag(day: Day, key: str) -> str | None:
    """A tag of the registered model; None without it, or without the model."""
    from mlflow.exceptions import MlflowException

    try:
        return _client(day).get_registered_model(day.config.mlflow.model_name).tags.get(key)
    except MlflowException:
        return None


def set_model_tag(day: Day, key: str, value: str | None) -> None:
    """Set a tag of the registered model, or remove it (None)."""
    client, name = _client(day), day.config.mlflow.model_name
    with leases.publishing():
        if value is None:
            _retry(lambda: client.delete_registered_model_tag(name, key))
        else:
            _retry(lambda: client.set_registered_model_tag(name, key, value))


def set_alias(day: Day, alias: str, version: str) -> None:
    """Move an alias to a version, backwards, too."""
    client, name = _client(day), day.config.mlflow.model_name
    with leases.publishing():
        _retry(lambda: client.set_registered_model_alias(name, alias, version))


def alias_version(day: Day, alias: str) -> str | None:
    """The version that an alias is at, None if there is no such alias."""
    from mlflow.exceptions import MlflowException

    try:
        return str(_client(day).get_model_version_by_alias(day.config.mlflow.model_name, alias).version)
    except MlflowException:
        return None


def download_model(day: Day, version: str) -> str:
    """A local folder with the version's export, for `training.checkpoint.load_export`; never written to."""
    import mlflow
    from mlflow.exceptions import MlflowException

    uri = f"{model_uri(day, version)}/artifacts/export"
    try:
        return mlflow.artifacts.download_artifacts(artifact_uri=uri)
    except (MlflowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{uri} cannot be read ({reason}): run `fuxi train --ds {day.ds}` again") from None


def artifact_files(day: Day, version: str) -> list[storage.FileInfo]:
    """The files of a version in this deployment's own registry; none where a server keeps them."""
    model = _logged_model(day, version)
    folder = _own_folder(day, model) if model else None
    return storage.list_files(folder) if folder else []


def delete_version(day: Day, version: str) -> None:
    """Remove a version, and its files from this deployment's own registry.

    A server frees its files when somebody runs `mlflow gc` there. The training run stays.
    """
    client, name = _client(day), day.config.mlflow.model_name
    model = _logged_model(day, version)
    with leases.publishing():
        _retry(lambda: client.delete_model_version(name, version))
    if model:
        _delete_logged_model(day, model)


def _delete_logged_model(day: Day, model: "LoggedModel") -> None:
    """Remove a logged model, and its files if they are in the workspace; a server deletes what it keeps by itself."""
    _retry(lambda: _client(day).delete_logged_model(model.model_id))
    if folder := _own_folder(day, model):
        storage.delete_folder(folder)


def _own_folder(day: Day, model: "LoggedModel") -> str | None:
    """Where a logged model is in the workspace; None if it is elsewhere."""
    folder = storage.absolute(model.artifact_location.removeprefix("file://"))
    return folder if folder.startswith(storage.join(day.workspace.uri, ARTIFACTS) + "/") else None


def _logged_model(day: Day, version: str) -> "LoggedModel | None":
    """What a version was made of; None of a version with files of a run."""
    found = _client(day).get_model_version(day.config.mlflow.model_name, version)
    logged = (found.source or "").removeprefix("models:/")
    model_id = found.model_id or (logged if logged.startswith("m-") else None)
    return _client(day).get_logged_model(model_id) if model_id else None


def model_uri(day: Day, version: str) -> str:
    """The URI for `mlflow.pyfunc.load_model`, after pointing MLflow at this deployment's registry."""
    _client(day)
    return f"models:/{day.config.mlflow.model_name}/{version}"


def _link(source: str, target: str) -> None:
    """Hard-link a file where the file system allows it, else copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _client(day: Day) -> "MlflowClient":
    """A client of this deployment's MLflow, which also becomes the process's default: logging a model needs that."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    # A server that is gone is named after half a minute, not after four.
    for name, value in (("MAX_RETRIES", "4"), ("BACKOFF_FACTOR", "1"), ("TIMEOUT", "60")):
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if day.has_own_registry:
        ensure_database(Path(day.workspace.registry), day.tracking_uri)
        relocate(day.workspace.uri)
    mlflow.set_tracking_uri(day.tracking_uri)
    mlflow.set_registry_uri(day.tracking_uri)
    return mlflow.MlflowClient(day.tracking_uri, day.tracking_uri)


def _experiment(day: Day, client: "MlflowClient") -> str:
    """The id of the daily model's experiment, created on first use."""
    from mlflow.exceptions import MlflowException

    name = day.config.mlflow.model_name
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        served = day.tracking_uri.startswith("http")  # a server is configured with its own place for artifacts
        location = None if served else storage.as_location(storage.join(day.workspace.uri, ARTIFACTS))
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another process may have been first
            if experiment is None:
                raise
    return experiment.experiment_id


def _ensure_registered_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException:
        with contextlib.suppress(MlflowException):  # another process was first; if not, creating a version raises
            _retry(lambda: client.create_registered_model(name))


def _info(version: "ModelVersion") -> ModelVersionInfo:
    tags = dict(version.tags)
    promoted = tags.get("promoted_ds")
    return ModelVersionInfo(
        version=str(version.version),
        ds=dt.date.fromisoformat(tags.get("ds", "1970-01-01")),
        data_end=int(tags.get("data_end", 0)),
        run_key=tags.get("run_key", ""),
        protocol=tags.get("protocol", ""),
        promoted_ds=dt.date.fromisoformat(promoted) if promoted else None,
        withdrawn=tags.get(WITHDRAWN, ""),
        full=tags.get("warm_started_from") == FROM_NOTHING,
    )


def _forward_alias(day: Day, alias: str, info: ModelVersionInfo) -> bool:
    """Move an alias to a version unless it is at one of a later ds. Returns whether it is at this one afterwards."""
    current = alias_version(day, alias)
    if current == info.version:
        return True
    if current is not None and version_info(day, current).ds > info.ds:
        return False
    set_alias(day, alias, info.version)
    return True


def _retry(write: Callable[[], object]) -> None:
    """Repeat a registry write that lost a race: sqlite raises IntegrityError or is locked while another writes."""
    from mlflow.exceptions import MlflowException

    for pause_s in (0.1, 0.2, 0.4, 0.8):
        try:
            write()
            return
        except MlflowException as error:
            if not any(text in str(error) for text in ("IntegrityError", "database is locked")):
                raise
        time.sleep(pause_s)
    write()
