"""The registry on a real MLflow: sqlite, and once through its server."""

import datetime as dt
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.registry import package, versions
from pipelines.errors import InputError

DAY_ONE, DAY_TWO, DAY_THREE = (dt.date(2026, 3, n) for n in (2, 3, 4))


def test_registering_the_same_run_key_again_adds_no_version(deployment: Callable[..., Any]) -> None:
    made = deployment()
    made.sessionized(DAY_ONE)
    first, again = made.trained(DAY_ONE, run_key="a"), made.trained(DAY_ONE, run_key="a")
    other = made.trained(DAY_ONE, seed=2, run_key="b")
    assert (first, again, other) == ("1", "1", "2")
    assert versions.alias_version(made.day(DAY_ONE), versions.CHALLENGER) == "2"


def test_logging_the_same_training_again_reuses_its_run_and_keeps_the_curve(deployment: Callable[..., Any]) -> None:
    import mlflow

    day = deployment().day(DAY_ONE)
    curve = [[step, 5.0 - step / 100] for step in range(1, 151)]
    runs = {versions.log_training(day, {"dim": 8}, curve, run_key="a", metrics={"events_per_s": 9.0}) for _ in range(2)}
    assert len(runs) == 1
    client = mlflow.MlflowClient(day.tracking_uri)
    assert [metric.value for metric in client.get_metric_history(runs.pop(), "loss")] == [y for _, y in curve]


def test_the_champion_of_a_day_is_the_newest_promoted_before_it(deployment: Callable[..., Any]) -> None:
    made = deployment()
    made.sessionized(DAY_ONE)
    one, two = made.trained(DAY_ONE), made.trained(DAY_TWO, seed=2)
    assert versions.champion(made.day(DAY_TWO)) is None
    assert versions.promote(made.day(DAY_ONE), one)
    assert versions.promote(made.day(DAY_TWO), two)

    assert versions.champion(made.day(DAY_ONE)) is None  # day one run again must not see day two's model, nor its own
    assert versions.champion(made.day(DAY_TWO)).version == one  # type: ignore[union-attr]
    assert versions.champion(made.day(DAY_THREE)).version == two  # type: ignore[union-attr]


def test_the_reference_is_the_last_full_retrain_that_was_promoted_however_many_warm_starts_follow(
    deployment: Callable[..., Any],
) -> None:
    made = deployment()
    made.sessionized(DAY_ONE)
    days = [DAY_ONE + dt.timedelta(days=n) for n in range(5)]
    for seed, (ds, parent) in enumerate(zip(days, [None, "1", "2", None, "4"], strict=True), start=1):
        assert made.trained(ds, seed=seed, parent=parent) == f"{seed}"
        if seed != 4:
            versions.promote(made.day(ds), f"{seed}")
    found = [versions.reference(made.day(ds)) for ds in (*days, days[-1] + dt.timedelta(days=1))]
    assert [info and info.version for info in found] == [None, "1", "1", "1", "1", "1"]
    versions.promote(made.day(days[3]), "4")
    assert versions.reference(made.day(days[4])).version == "4"  # type: ignore[union-attr]
    assert versions.reference(made.day(days[3])).version == "1"  # type: ignore[union-attr]
    assert [versions.last_full_training(made.day(ds)) for ds in days] == [None, *[days[0]] * 3, days[3]]


def test_where_no_version_says_that_it_is_a_full_retrain_the_first_promoted_one_is_the_reference(
    deployment: Callable[..., Any],
) -> None:
    import mlflow

    made = deployment()
    made.sessionized(DAY_ONE)
    for seed, ds in enumerate((DAY_ONE, DAY_TWO), start=1):
        version = made.trained(ds, seed=seed)
        versions.promote(made.day(ds), version)
        client = mlflow.MlflowClient()
        client.delete_model_version_tag(made.config.mlflow.model_name, version, "warm_started_from")
    assert versions.reference(made.day(DAY_THREE)).version == "1"  # type: ignore[union-attr]
    assert versions.last_full_training(made.day(DAY_THREE)) is None


def test_a_model_trained_on_later_events_is_no_champion(deployment: Callable[..., Any]) -> None:
    made = deployment()
    made.sessionized(DAY_ONE)
    version = made.trained(DAY_THREE)  # its data end on DAY_TWO 00:00, after DAY_TWO - 1 00:00
    versions.promote(made.day(DAY_ONE), version)
    assert versions.champion(made.day(DAY_TWO)) is None
    assert versions.champion(made.day(DAY_THREE)) is not None


def test_the_champion_alias_moves_only_forward(deployment: Callable[..., Any]) -> None:
    made = deployment()
    made.sessionized(DAY_ONE)
    one, two = made.trained(DAY_ONE), made.trained(DAY_TWO, seed=2)
    assert versions.promote(made.day(DAY_TWO), two)
    assert not versions.promote(made.day(DAY_ONE), one)
    assert versions.alias_version(made.day(DAY_ONE), versions.CHAMPION) == two


def test_a_version_that_is_not_there_is_one_line(deployment: Callable[..., Any]) -> None:
    made = deployment()
    made.sessionized(DAY_ONE)
    made.trained(DAY_ONE)
    with pytest.raises(InputError, match=r"no version 9") as error:
        versions.version_info(made.day(DAY_ONE), "9")
    with pytest.raises(InputError, match=r"models:/fuxi-beta-daily/9") as missing:
        versions.download_model(made.day(DAY_ONE), "9")
    assert "\n" not in f"{error.value}{missing.value}"


@pytest.mark.parametrize("item_id_type", ["int64", "string"])
def test_the_pyfunc_takes_its_own_example_and_gives_ids_of_the_logs(
    deployment: Callable[..., Any], item_id_type: str
) -> None:
    import mlflow

    made = deployment(item_id_type=item_id_type)
    made.sessionized(DAY_ONE)
    version = made.trained(DAY_ONE)
    model = mlflow.pyfunc.load_model(versions.model_uri(made.day(DAY_ONE), version))
    example = model.input_example
    assert example is not None
    listed = model.predict(example)
    songs = {made.item_id(index) for index in range(1, made.songs + 1)}
    items = list(listed["items"][0])
    assert len(items) == 10 == len(set(items))
    assert set(items) <= songs - set(example["item_ids"][0])
    assert list(listed["scores"][0]) == sorted(listed["scores"][0], reverse=True)


def test_the_pyfunc_drops_unknown_songs_and_defaults_to_thirty(deployment: Callable[..., Any]) -> None:
    import mlflow
    import pandas as pd

    made = deployment()
    made.sessionized(DAY_ONE)
    model = mlflow.pyfunc.load_model(versions.model_uri(made.day(DAY_ONE), made.trained(DAY_ONE)))
    known = pd.DataFrame(
        {"item_ids": [[1007, 1014]], "timestamps": [[1_772_000_000, 1_772_000_100]], "request_time": [1_772_400_000]}
    )
    with_unknown = known.assign(item_ids=[[1007, 5, 1014]], timestamps=[[1_772_000_000, 1_772_000_050, 1_772_000_100]])
    expected, found = model.predict(known), model.predict(with_unknown)
    assert len(found["items"][0]) == 30
    assert list(found["items"][0]) == list(expected["items"][0])


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    """MLflow's own server on loopback, with its own database and artifact folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination",
        f"{tmp_path}/served",
    ]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "", "MLFLOW_REGISTRY_URI": ""}
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, env=environment, start_new_session=True, stdout=quiet, stderr=quiet)
    try:
        for _ in range(900):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def test_a_server_keeps_the_versions_and_gives_the_export_back(
    deployment: Callable[..., Any], mlflow_server: str
) -> None:
    from fuxi_beta.training.checkpoint import load_export

    made = deployment(f"mlflow.tracking_uri={mlflow_server}")
    made.sessionized(DAY_ONE)
    version = made.trained(DAY_ONE)
    assert made.trained(DAY_ONE) == version
    versions.promote(made.day(DAY_ONE), version)
    assert versions.champion(made.day(DAY_TWO)).version == version  # type: ignore[union-attr]
    assert load_export(versions.download_model(made.day(DAY_TWO), version)).vocabulary_size == made.songs


def test_what_a_killed_registration_left_goes_with_the_next(
    deployment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    made = deployment()
    made.sessionized(DAY_ONE)
    day, client = made.day(DAY_ONE), mlflow.MlflowClient(made.day(DAY_ONE).tracking_uri)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def registered_but_killed(where: Any, name: str, **options: str) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(where, name, killed)
            with pytest.raises(KeyboardInterrupt):
                made.trained(DAY_ONE, **options)

    registered_but_killed(package, "_note_digests")
    experiment = [client.get_experiment_by_name(day.config.mlflow.model_name).experiment_id]  # type: ignore[union-attr]
    client.update_run(client.search_runs(experiment)[0].info.run_id, status="RUNNING")  # as SIGKILL leaves it
    registered_but_killed(mlflow.MlflowClient, "create_model_version")
    [left] = client.search_logged_models(experiment)  # the first is gone
    registered_but_killed(mlflow.MlflowClient, "set_terminated", run_key="other")
    assert {run.info.status for run in client.search_runs(experiment)} == {"FINISHED", "RUNNING"}

    assert (made.trained(DAY_ONE), made.trained(DAY_ONE, run_key="other")) == ("1", "2")
    models = client.search_logged_models(experiment)
    assert len(models) == 2 == len(versions.versions(day)) and left.model_id not in {model.model_id for model in models}
    assert not Path(left.artifact_location).exists() and Path(models[0].artifact_location).exists()
    assert {run.info.status for run in client.search_runs(experiment)} == {"FINISHED"}


LATE = """
import datetime as dt, os, signal, sys
from mlflow import MlflowClient
from jobs.config import load_config
from jobs.day import open_day
from jobs.registry import versions

move = MlflowClient.set_registered_model_alias


def stand_still_before(*arguments):
    MlflowClient.set_registered_model_alias = move
    os.kill(os.getpid(), signal.SIGSTOP)
    return move(*arguments)


day = open_day(load_config(overrides=sys.argv[3:], environment={}), dt.date.fromisoformat(sys.argv[1]))
versions.versions(day)
MlflowClient.set_registered_model_alias = stand_still_before
print(versions.promote(day, sys.argv[2]))
"""


def test_a_promotion_that_stood_still_does_not_move_the_alias_back(deployment: Callable[..., Any]) -> None:
    made = deployment()
    made.sessionized(DAY_ONE)
    one, two = made.trained(DAY_ONE), made.trained(DAY_TWO, seed=2)
    overrides = [f"workspace={made.config.workspace}", "sequences.buckets=4"]
    command = [sys.executable, "-c", LATE, str(DAY_ONE), one, *overrides]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as late:
        try:
            assert os.WIFSTOPPED(os.waitpid(late.pid, os.WUNTRACED)[1])
            assert versions.promote(made.day(DAY_TWO), two)
            late.send_signal(signal.SIGCONT)
            said, _ = late.communicate(timeout=60)
        finally:
            late.kill()
    assert said == "False\n" and late.returncode == 0
    assert versions.alias_version(made.day(DAY_TWO), versions.CHAMPION) == two
