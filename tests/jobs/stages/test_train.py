"""`fuxi train` on real Ray workers: what is killed is resumed, and the result is that of an undisturbed run."""

import contextlib
import copy
import datetime as dt
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fuxi_beta.config import TrainConfig
from jobs.day import Day
from jobs.registry import versions as registry
from jobs.stages import train
from jobs.training.position import CheckpointPosition
from jobs.training.resume import SNAPSHOT
from pipelines.errors import InputError
from pipelines.histories.shards import Manifest, read_manifest
from tests.log_lines import lines, said

from ..conftest import DAY_ONE, DAY_TWO, Deployment

SMALL = (
    "model.dim=8",
    "model.layers=1",
    "model.max_history=20",
    "train.epochs=5",
    "train.batch_size=16",
    "train.checkpoint_every_steps=4",
    "train.min_listeners=2",
    "train.negatives=16",
    "train.item_lr=0.02",
)


def in_this_process(day: Day, manifest: Manifest) -> tuple[Any, Any, Any]:
    """The trainer, the batches and the settings of the same training, without Ray or TorchRec."""
    import torch

    from fuxi_beta.data.reader import TrainingBatches
    from fuxi_beta.models.fuxi_beta import FuXiBeta
    from fuxi_beta.training.item_table import PlainItemTable
    from fuxi_beta.training.trainer import Trainer

    loop = train._loop_config(day, manifest, parent="")
    torch.manual_seed(loop.train.seed)
    trainer = Trainer(
        FuXiBeta(loop.model),
        PlainItemTable(loop.rows, loop.model.dim, train=loop.train),
        train=loop.train,
        candidates=torch.from_numpy(loop.candidates.nonzero()[0]),
    )
    batches = TrainingBatches(
        manifest,
        model=loop.model,
        train=loop.train,
        data_end=loop.data_end,
        rank=0,
        world_size=1,
        vocabulary_size=manifest.vocabulary_size,
    )
    return trainer, batches, loop


def undisturbed(day: Day, manifest: Manifest) -> tuple[list[float], int]:
    """Mean loss of each epoch, and all steps, of the same training in this process, without Ray or TorchRec."""
    trainer, batches, loop = in_this_process(day, manifest)
    means = []
    epochs = loop.epochs(batches.steps_per_epoch)
    for epoch in range(epochs):
        steps = [trainer.step(batch, epoch=epoch) for batch in batches.epoch(epoch)]
        means.append(sum(s.loss * s.positions for s in steps) / sum(s.positions for s in steps))
    return means, epochs * batches.steps_per_epoch


def steps_taken(day: Day) -> int:
    """What rank 0 last told the driver."""
    file = Path(day.workspace.run(day.ds), "train_progress.json")
    return json.loads(file.read_text())["steps"] if file.exists() else 0


def wait_for_steps(day: Day, steps: int, *, alive: Any = lambda: True, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while steps_taken(day) < steps:
        assert alive() and time.monotonic() < deadline, f"training did not reach step {steps}"
        time.sleep(0.05)


@pytest.fixture
def raylets(request: pytest.FixtureRequest) -> Iterator[str]:
    """A cluster of so many one-CPU nodes (the parameter) on this machine; yields its address."""
    import ray
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    try:
        for _ in range(request.param - 1):
            cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        cluster.wait_for_nodes()
        yield str(cluster.address)
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("raylets", [4], indirect=True)
def test_four_workers_of_four_nodes_end_with_the_loss_of_one_process(deployment, raylets: str) -> None:
    nodes = (f"cluster.ray_address={raylets}", "cluster.train_workers=4", "train.item_optimizer=rowwise_adagrad")
    house: Deployment = deployment(*SMALL, *nodes, listeners=120)
    manifest, day = house.sessionized(DAY_ONE), house.day(DAY_ONE)
    result = train.run(day)
    expected, steps = undisturbed(day, manifest)
    assert result["steps"] == steps and result["final_loss"] == pytest.approx(expected[-1], rel=1e-6)
    assert expected[-1] < expected[0]


@pytest.mark.parametrize("raylets", [2], indirect=True)
def test_a_worker_killed_in_a_two_node_cluster_is_replaced_and_the_loss_is_the_undisturbed_one(
    deployment, raylets: str
) -> None:
    house: Deployment = deployment(*SMALL, f"cluster.ray_address={raylets}", "cluster.train_workers=2", listeners=120)
    manifest, day = house.sessionized(DAY_ONE), house.day(DAY_ONE)
    killed: list[int] = []

    def kill_one_worker() -> None:
        wait_for_steps(day, 14)
        workers = training_workers()
        if len(workers) == 2:
            os.kill(workers[1], signal.SIGKILL)
            killed.append(workers[1])

    killer = threading.Thread(target=kill_one_worker)
    killer.start()
    result = train.run(day)
    killer.join()

    assert killed and len(result["resumed_at"]) == 1 and result["resumed_at"][0] >= 8
    expected, steps = undisturbed(day, manifest)
    assert result["steps"] == steps and result["epochs"] == 5 and result["samples"] == 5 * 120
    assert result["final_loss"] == pytest.approx(expected[-1], rel=1e-5)
    assert expected[-1] < expected[0]


def training_workers() -> list[int]:
    """Process ids of Ray Train's workers below this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("RayTrainWorker" in part for part in process.cmdline()):
                found.append(process.pid)
    return found


def exported(day: Day) -> dict[str, Any]:
    """Every tensor of the day's export."""
    from safetensors.torch import load_file

    files = Path(day.path(f"export-{day.record.run_id}")).glob("*.safetensors")
    return {f"{file.name}:{name}": tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.slow
@pytest.mark.parametrize("raylets", [2], indirect=True)
def test_a_worker_that_gets_sigterm_costs_no_step_and_no_bit_of_the_result(
    deployment, raylets: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    settings = (*SMALL, "train.checkpoint_every_steps=1000", f"cluster.ray_address={raylets}")
    settings += ("cluster.train_workers=2", "cluster.max_failures=0")
    disturbed: Deployment = deployment(*settings, listeners=120)
    alone: Deployment = deployment(*settings, listeners=120, folder="alone")
    for house in (disturbed, alone):
        house.sessionized(DAY_ONE)
    day = disturbed.day(DAY_ONE)
    at: list[int] = []

    def tell_one_worker() -> None:
        wait_for_steps(day, 13)
        at.append(steps_taken(day))
        os.kill(training_workers()[1], signal.SIGTERM)

    teller = threading.Thread(target=tell_one_worker)
    teller.start()
    result = train.run(day)
    teller.join()
    expected = train.run(alone.day(DAY_ONE))

    (step,) = result["resumed_at"]
    assert step >= at[0] and step % (result["steps"] // 5), "saved in mid-epoch"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "told to leave" in line]
    assert json.loads(line)["step"] == step
    assert result["steps"] == expected["steps"] and expected["resumed_at"] == []
    assert result["loss_curve"] == expected["loss_curve"]
    tensors, wanted = exported(day), exported(alone.day(DAY_ONE))
    assert tensors.keys() == wanted.keys() and all(torch.equal(tensors[name], wanted[name]) for name in wanted)


@pytest.mark.slow
def test_a_node_that_is_drained_costs_no_step(deployment) -> None:
    import ray
    from ray.cluster_utils import Cluster

    node: Any = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    other = cluster.add_node(**node)
    cluster.wait_for_nodes()
    settings = (f"cluster.ray_address={cluster.address}", "cluster.train_workers=[1, 2]", "cluster.max_failures=0")
    settings += ("train.epochs=40", "train.checkpoint_every_steps=1000")
    house: Deployment = deployment(*SMALL, *settings, listeners=120)
    manifest, day = house.sessionized(DAY_ONE), house.day(DAY_ONE)
    drained: list[int] = []

    def drain() -> None:
        wait_for_steps(day, 13)
        drained.append(steps_taken(day))
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", cluster.address]
        command += ["--node-id", other.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        subprocess.run([*command, "--deadline-remaining-seconds", "60"], check=True, capture_output=True)

    try:
        drains = threading.Thread(target=drain)
        drains.start()
        result = train.run(day)
        drains.join()
    finally:
        ray.shutdown()
        cluster.shutdown()
    expected, steps = undisturbed(day, manifest)
    (resumed,) = result["resumed_at"]
    assert drained[0] <= resumed < steps == result["steps"]
    assert result["final_loss"] == pytest.approx(expected[-1], rel=1e-5)
    positions = [json.loads(path.read_text()) for path in Path(day.path("checkpoints")).glob("*/*/position.json")]
    assert {position["workers"] for position in positions if position["steps"] == steps} == {1}


@pytest.mark.slow
def test_a_training_whose_cluster_loses_a_node_goes_on_with_one_worker_to_the_undisturbed_loss(
    deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray
    from ray.cluster_utils import Cluster

    node: Any = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    other = cluster.add_node(**node)
    cluster.wait_for_nodes()
    elastic = (f"cluster.ray_address={cluster.address}", "cluster.train_workers=[1, 2]", "train.epochs=80")
    house: Deployment = deployment(*SMALL, *elastic, "train.checkpoint_every_steps=50", listeners=120)
    manifest, day = house.sessionized(DAY_ONE), house.day(DAY_ONE)
    lost: list[float] = []

    def workers() -> int:
        (snapshots,) = [sorted(Path(day.workspace.run(DAY_ONE), "checkpoints").glob("*/checkpoint_*/position.json"))]
        return json.loads(snapshots[-1].read_text())["workers"]

    def wait_for_workers(count: int) -> None:
        started = time.monotonic()
        while workers() != count:
            assert time.monotonic() - started < 200
            time.sleep(0.2)
        lost.append(time.monotonic() - started)

    def change_nodes() -> None:
        wait_for_steps(day, 40)
        wait_for_workers(2)
        cluster.remove_node(other)
        wait_for_workers(1)

    try:
        changes = threading.Thread(target=change_nodes)
        changes.start()
        result = train.run(day)
        changes.join(timeout=10)
    finally:
        ray.shutdown()
        cluster.shutdown()
    with capsys.disabled():
        print(f"seconds from the loss of the node to the first checkpoint with one worker: {lost[1]:.1f}")
    expected, steps = undisturbed(day, manifest)
    assert len(lost) == 2 and len(result["resumed_at"]) == 1
    assert result["steps"] == steps and result["final_loss"] == pytest.approx(expected[-1], rel=1e-5)


DRIVER = """
    import sys, datetime as dt
    from jobs.stages import train
    from jobs.config import load_config
    from jobs.day import open_day

    if __name__ == "__main__":
        train.run(open_day(load_config(overrides=sys.argv[2:], environment={}), dt.date.fromisoformat(sys.argv[1])))
"""


@pytest.fixture
def driver_killed(deployment, tmp_path: Path) -> Deployment:
    """A deployment whose day-one training was killed, driver and all, somewhere after step 14."""
    house: Deployment = deployment(*SMALL, listeners=120)
    house.sessionized(DAY_ONE)
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER))
    overrides = [f"workspace={house.config.workspace}", "sequences.buckets=4", "cluster.spark_master=local[2]", *SMALL]
    with open(tmp_path / "driver.log", "w") as log:
        driver = subprocess.Popen([sys.executable, script, str(DAY_ONE), *overrides], stdout=log, stderr=log)
    try:
        wait_for_steps(house.day(DAY_ONE), 14, alive=lambda: driver.poll() is None)
        children = psutil.Process(driver.pid).children(recursive=True)
    finally:
        driver.kill()
        driver.wait()
    psutil.wait_procs(children, timeout=30)
    return house


def test_a_killed_driver_run_again_resumes_and_the_next_day_starts_from_its_model(
    driver_killed: Deployment, ray_local: Any
) -> None:
    house, day = driver_killed, driver_killed.day(DAY_ONE)
    assert day.marker("train") is None
    result = train.run(day)
    expected, steps = undisturbed(day, read_manifest(day.workspace.sequences(DAY_ONE)))
    assert len(result["resumed_at"]) == 1 and 8 <= result["resumed_at"][0] < steps == result["steps"]
    assert result["final_loss"] == pytest.approx(expected[-1], rel=1e-5)
    assert result["warm_started_from"] is None and len(result["seconds_per_epoch"]) == 5
    assert_published(day, result)

    registry.promote(day, result["model_version"])
    house.sessionized(DAY_TWO, house.histories)
    second = train.run(house.day(DAY_TWO))
    assert second["warm_started_from"] == result["model_version"] == house.day(DAY_TWO).record.parent_model
    assert second["epochs"] == house.config.train.warm_start_epochs
    assert second["loss_curve"][0][1] < result["loss_curve"][0][1]
    assert int(second["model_version"]) == int(result["model_version"]) + 1
    assert [info.full for info in registry.versions(day)] == [True, False]


def killed_in_mid_training(
    house: Deployment, name: str, number: signal.Signals, *settings: str
) -> tuple[int, str, str]:
    """Run `fuxi train`, send a signal to one process of it, by its name, behind step 14.

    Returns exit code, standard output and the lines for people on standard error; nothing is left running by then.
    """
    overrides = (f"workspace={house.config.workspace}", "sequences.buckets=4", *SMALL, *settings)
    command = [sys.executable, "-m", "jobs.cli", "train", "--ds", str(DAY_ONE)]
    command += [part for text in overrides for part in ("--set", text)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for_steps(house.day(DAY_ONE), 14, alive=lambda: process.poll() is None)
            started = psutil.Process(process.pid).children(recursive=True)
            victims = [child for child in started if name in " ".join(child.cmdline())] if name else [process]
            assert len(victims) == 1
            victims[0].send_signal(number)
            printed, written = process.communicate(timeout=400)
        finally:
            process.kill()
    assert not psutil.wait_procs(started, timeout=5)[1]
    assert len(lines(printed)) <= 1
    return process.returncode, printed, "\n".join(said(written))


@pytest.mark.parametrize(
    ("name", "number", "settings", "died"),
    [
        ("TrainController", signal.SIGKILL, (), "Ray Train's controller died"),
        pytest.param(
            *("TrainController", signal.SIGSTOP, ("cluster.stall_minutes=2",), "TrainController.* is stopped"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("RayTrainWorker", signal.SIGSTOP, ("cluster.stall_minutes=2",), "RayTrainWorker.* is stopped"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_training_goes_on_from_its_checkpoint_after_what_ray_does_not_survive(
    deployment, name: str, number: signal.Signals, settings: tuple[str, ...], died: str
) -> None:
    house: Deployment = deployment(*SMALL, listeners=120)
    manifest, day = house.sessionized(DAY_ONE), house.day(DAY_ONE)
    code, printed, line = killed_in_mid_training(house, name, number, *settings)
    assert code == 0, line
    assert re.fullmatch(rf"fuxi: train of {DAY_ONE}: .*{died}.*: it is begun again, 1 of 2 times", line), line
    expected, steps = undisturbed(day, manifest)
    result = json.loads(printed)
    assert result["steps"] == steps and len(result["resumed_at"]) == 1 and result["resumed_at"][0] >= 8
    assert result["final_loss"] == pytest.approx(expected[-1], rel=1e-5)


@pytest.mark.slow
def test_a_training_that_is_stopped_saves_its_step_and_leaves_nothing_running(deployment, ray_local: Any) -> None:
    house: Deployment = deployment(*SMALL, "train.checkpoint_every_steps=1000", listeners=120)
    house.sessionized(DAY_ONE)
    code, _, lines_said = killed_in_mid_training(house, "", signal.SIGTERM, "train.checkpoint_every_steps=1000")
    assert code == 143
    line = lines_said.splitlines()[-1]
    found = re.match(r"fuxi: stopped by SIGTERM; training had taken (\d+) of \d+ steps and goes on from there;", line)
    assert found, line
    assert train.run(house.day(DAY_ONE))["resumed_at"] == [int(found[1])]


def test_a_list_of_checkpoints_cut_off_by_a_kill_costs_no_step(driver_killed: Deployment, ray_local: Any) -> None:
    """Ray Train overwrites its list in place; half of it must not stop the run for good."""
    day = driver_killed.day(DAY_ONE)
    (snapshot,) = Path(day.workspace.run(DAY_ONE), "checkpoints").glob(f"*/{SNAPSHOT}")
    folders = sorted(snapshot.parent.glob("checkpoint_2*"))
    (folders[-1].parent / "checkpoint_9999-12-31").mkdir()  # the next one had only begun
    snapshot.write_bytes(snapshot.read_bytes()[:40])
    result = train.run(day)
    assert len(result["resumed_at"]) == 1
    assert result["resumed_at"] == [CheckpointPosition.read(str(folders[-1])).steps]
    assert undisturbed(day, read_manifest(day.workspace.sequences(DAY_ONE)))[1] == result["steps"]


def assert_published(day: Day, result: dict[str, Any]) -> None:
    """The export is complete, ends a day before ds, and is the registered version; a repeat registers nothing new."""
    from fuxi_beta.training.checkpoint import load_export, load_train_state

    trained = load_export(result["export"])
    assert trained.data_end == day.calendar.day_start(DAY_ONE) - 86_400
    assert trained.ds == str(DAY_ONE) and trained.metadata["run_id"] == day.record.run_id
    assert trained.request_hour == day.config.serving.request_hour
    assert int(trained.candidates.sum()) == result["candidates"] > 10
    assert {"items.accumulator", "dense.exp_avg.positions"} <= load_train_state(result["export"]).keys()
    info = registry.version_info(day, result["model_version"])
    assert info.data_end == trained.data_end and info.promoted_ds is None
    curves = trained.model.temporal_curves()
    assert [(layer["a"], layer["b"]) for layer in result["temporal"]] == curves
    json.dumps(result)


def test_a_loss_that_is_not_finite_stops_training_with_one_line(deployment, ray_local: Any) -> None:
    house: Deployment = deployment(*SMALL, "train.temperature=1.0e-40", listeners=40)
    house.sessionized(DAY_ONE)
    with pytest.raises(
        InputError, match=r"training stopped: the training loss is nan at step 1 .*lower train\.lr"
    ) as caught:
        train.run(house.day(DAY_ONE))
    assert "\n" not in str(caught.value)
    assert not registry.versions(house.day(DAY_ONE))


SPIKES = ("train.epochs=10", "train.spike_factor=1.05")
"""So little above the median that some steps of any training are spikes."""


def with_returns(day: Day, manifest: Manifest) -> tuple[list[tuple[int, int]], float]:
    """(step, to) of each return to a checkpoint and the loss of the last epoch, by a loop without Ray or TorchRec."""
    trainer, batches, loop = in_this_process(day, manifest)
    position, kept, returns = CheckpointPosition(), {}, []

    def keep() -> None:
        kept["state"] = {name: tensor.clone() for name, tensor in trainer.state().items()}
        kept["position"] = copy.deepcopy(position)

    while position.epoch < loop.train.epochs:
        if position.step == batches.steps_per_epoch:
            position.finished_epoch()
            keep()
            continue
        for batch in batches.epoch(position.epoch, start_step=position.step):
            result = trainer.step(batch, epoch=position.epoch)
            if position.spike(result.loss, loop.train.spike_factor):
                for name, tensor in trainer.state().items():
                    tensor.copy_(kept["state"][name])
                failed, position = position, copy.deepcopy(kept["position"])
                returns.append((failed.steps + 1, position.steps))
                position.go_on_at(failed.step + 1, failed, "")
                break
            position.took_step(result, 0.0)
            if position.steps % loop.train.checkpoint_every_steps == 0 and position.step < batches.steps_per_epoch:
                keep()
    return returns, position.epoch_losses[-1]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_spike_is_rolled_back_and_its_steps_are_skipped(
    deployment, ray_local: Any, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    house: Deployment = deployment(*SMALL, *SPIKES, f"cluster.train_workers={workers}", listeners=120)
    manifest, day = house.sessionized(DAY_ONE), house.day(DAY_ONE)
    expected, loss = with_returns(day, manifest)
    assert len(expected) > 1 and all(step > to for step, to in expected)
    result = train.run(day)
    assert [(rollback["step"], rollback["to"]) for rollback in result["rollbacks"]] == expected
    assert result["steps"] == 110 and result["final_loss"] == pytest.approx(loss, rel=1e-5)
    told = capsys.readouterr().err
    assert told.count("went back to a checkpoint") == len(expected) and "more than 1.05 times the" in told
    assert registry._client(day).get_run(result["mlflow_run_id"]).data.metrics["rollbacks"] == len(expected)


@pytest.mark.slow
def test_too_many_spikes_end_a_training_in_one_line(deployment, ray_local: Any) -> None:
    house: Deployment = deployment(*SMALL, *SPIKES, "train.max_rollbacks=1", listeners=120)
    house.sessionized(DAY_ONE)
    with pytest.raises(InputError, match=r"the training loss is .*, after going back to a checkpoint 1 times: lower"):
        train.run(house.day(DAY_ONE))


def test_gpus_that_are_not_there_are_refused_instead_of_waited_for(deployment, ray_local: Any) -> None:
    gpus = "cluster.train_gpus_per_worker=100"
    house: Deployment = deployment(*SMALL, gpus, listeners=40)
    house.sessionized(DAY_ONE)
    with pytest.raises(InputError, match=r"train_gpus_per_worker asks for 100 GPUs in all, Ray finds \d on this"):
        train.run(house.day(DAY_ONE))


def test_any_system_can_be_the_daily_model(deployment, ray_local: Any) -> None:
    """Another model of the paper goes through Ray, its checkpoint, its export and a list."""
    import torch

    from fuxi_beta.data.batches import inference_batch
    from fuxi_beta.training.checkpoint import load_export

    hour = "serving.request_hour=18"
    epochs = ("train.epochs=1", "train.min_steps=5")
    house: Deployment = deployment(*SMALL, "model.name=hstu-beta", *epochs, hour, listeners=40)
    manifest = house.sessionized(DAY_ONE)
    day = house.day(DAY_ONE)
    result = train.run(day)
    trained = load_export(result["export"])
    assert trained.model_config.name == "hstu-beta" and type(trained.model).__name__ == "HSTU"
    assert trained.request_hour == 18
    per_epoch = result["steps"] // result["epochs"]
    assert result["epochs"] == 2 and result["steps"] % 2 == 0 and per_epoch < 5 <= result["steps"]  # `min_steps`
    assert len(result["temporal"]) == 1  # its power function, for the report
    batch = inference_batch(
        manifest.histories(manifest.files[0]),
        request_time=manifest.data_end,
        model=trained.model_config,
        train=trained.train_config,
        calendar=day.calendar,
        vocabulary_size=trained.vocabulary_size,
    )
    items, scores = trained.recommend(batch, 5)
    assert bool((items[batch.lengths > 0] > 0).all()) and not torch.isnan(scores).any()


def test_too_few_eligible_songs_is_one_line_that_names_the_setting(deployment) -> None:
    house: Deployment = deployment("train.min_listeners=10000")
    house.sessionized(DAY_ONE)
    with pytest.raises(InputError, match=r"0 songs have train\.min_listeners \(10000\) listeners") as caught:
        train.run(house.day(DAY_ONE))
    assert "\n" not in str(caught.value)


def test_a_day_without_sequences_is_refused_in_one_line(deployment) -> None:
    house: Deployment = deployment()
    with pytest.raises(InputError, match=r"_manifest.json is not there: run `fuxi sessionize`"):
        train.run(house.day(DAY_ONE))


def test_a_parent_of_another_shape_means_a_cold_start_and_one_of_the_same_a_warm_one(deployment) -> None:
    for shape, warm in ((("model.dim=16",), False), (SMALL[:3], True)):
        house: Deployment = deployment(*shape, folder=f"workspace-{warm}")
        house.sessionized(DAY_ONE)
        version = house.trained(DAY_ONE)
        registry.promote(house.day(DAY_ONE), version)
        manifest, day = house.sessionized(DAY_TWO, house.histories), house.day(DAY_TWO)
        found, folder = train._parent(day, manifest)
        assert (found, bool(folder)) == ((version, True) if warm else (None, False))
        assert day.record.parent_model == version


def test_whether_there_is_a_parent_is_decided_once_per_run_record(deployment) -> None:
    house: Deployment = deployment(*SMALL)
    manifest, day = house.sessionized(DAY_TWO), house.day(DAY_TWO)
    assert train._parent(day, manifest) == (None, "")
    registry.promote(house.day(DAY_ONE), house.trained(DAY_ONE))  # yesterday is promoted only now
    assert train._parent(day, manifest) == (None, "")


def test_a_full_retrain_is_asked_for_by_the_gate_or_the_calendar_and_decided_once(deployment) -> None:
    house: Deployment = deployment(*SMALL, "train.full_every_days=3")
    registry.promote(house.day(DAY_ONE), house.trained(DAY_ONE))  # full
    days = [DAY_ONE + dt.timedelta(days=n) for n in range(1, 5)]
    manifest = house.sessionized(days[0])
    for ds in days:
        house.sessionized(ds, house.histories)
    assert train._parent(house.day(days[0]), manifest)[0] == "1"
    house.day(days[0]).finish("promote", {"full_retrain": "below gates.floor"}, 0.0)
    assert train._parent(house.day(days[1]), manifest) == (None, "")
    assert house.day(days[1]).record.full_retrain == "below gates.floor"
    house.day(days[0]).finish("promote", {"full_retrain": ""}, 0.0)
    assert train._parent(house.day(days[1]), manifest) == (None, "")  # as it was decided
    assert house.day(days[1]).record.full_retrain == "below gates.floor"  # whose training did not finish
    assert train._parent(house.day(days[2]), manifest) == (None, "")  # so that it stands, and is 3 days later anyway
    assert house.day(days[2]).record.full_retrain == (
        f"the last full retrain is of {DAY_ONE}, train.full_every_days is 3"
    )
    house.day(days[2]).finish("promote", {"full_retrain": ""}, 0.0)
    house.trained(days[2], seed=2)  # from nothing, and not promoted
    assert train._parent(house.day(days[3]), manifest)[0] == "1"


def test_least_steps_mean_more_epochs_of_a_warm_start_in_its_share() -> None:
    config = TrainConfig(epochs=6, warm_start_epochs=2, min_steps=100)
    assert [config.epochs_of(steps) for steps in (0, 1, 9, 16, 17, 1000)] == [100, 100, 12, 7, 6, 6]
    assert [config.epochs_of(steps, warm=True) for steps in (1, 9, 17, 1000)] == [33, 4, 2, 2]
    assert TrainConfig(epochs=6).epochs_of(1) == 6
    assert config.epochs_of(1, warm=True, incremental=True) == 2


def test_an_incremental_training_learns_from_where_its_parent_ended(deployment) -> None:
    house: Deployment = deployment(*SMALL, "train.incremental=true")
    house.sessionized(DAY_ONE)
    assert train._data_start(house.day(DAY_ONE), house.sessionized(DAY_ONE), None) == 0
    registry.promote(house.day(DAY_ONE), house.trained(DAY_ONE))
    day, manifest = house.day(DAY_TWO), house.sessionized(DAY_TWO, house.histories)
    version, folder = train._parent(day, manifest)
    start = train._data_start(day, manifest, version)
    assert start == registry.version_info(day, "1").data_end
    loop = train._loop_config(day, manifest, folder, data_start=start)
    assert start < loop.data_end and loop.epochs(1) == loop.train.warm_start_epochs
    again = house.day(DAY_ONE)  # of plays that the champion knows all of
    assert train._data_start(again, house.sessionized(DAY_ONE), "1") == 0
