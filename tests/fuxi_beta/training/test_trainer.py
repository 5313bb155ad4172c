"""A trainer's results do not depend on the number of ranks, on interruptions, or on where a table lives."""

import dataclasses
import functools
import math
import os
import socket
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.data.candidates import candidate_songs
from fuxi_beta.data.reader import TrainingBatches
from fuxi_beta.data.side import SongSide, side_information
from fuxi_beta.models.fuxi_beta import FuXiBeta
from fuxi_beta.training.item_table import PlainItemTable, initial_rows, item_table
from fuxi_beta.training.song_table import song_table
from fuxi_beta.training.trainer import DivergedError, Trainer, read_checkpoint, trained_model
from pipelines.calendar import Calendar
from pipelines.errors import InputError
from pipelines.histories.shards import Manifest

SONGS, DAY, DATA_END = 90, 86_400, 40 * 86_400
MODEL = ModelConfig(dim=10, layers=2, max_history=12, dropout=0.2)
TRAIN = TrainConfig(batch_size=12, negatives=16, min_listeners=1, mode="all", item_lr=0.02, seed=5)

EVERYTHING: dict[str, Any] = {
    "negatives_from": "in_batch",
    "logq": True,
    "random_windows": 0.5,
    "ema": 0.9,
    "completion_weight": 0.5,
}
"""Settings under which a rank draws, or a checkpoint holds, all that there is."""

LEAVES_AT = 5
"""The step in which the last rank says that it leaves."""


@pytest.fixture
def manifest(make_shards) -> Manifest:
    """50 listeners in three buckets, row groups of about four, so that lanes run dry at different steps."""
    random = np.random.default_rng(3)
    buckets: list[dict[int, list[tuple[int, int, int]]]] = [{}, {}, {}]
    for user in range(50):
        times = np.sort(random.integers(0, DATA_END, random.integers(2, 20)))
        buckets[user % 3 if user % 5 else 0][user] = [(int(random.integers(1, SONGS + 1)), int(t), 100) for t in times]
    return make_shards(buckets, vocabulary_size=SONGS, data_end=DATA_END, row_group_events=40)


def side_of(model: ModelConfig) -> SongSide | None:
    """Two columns and a vector for every song, if the model takes them."""
    songs = range(1, SONGS + 1)
    columns = {"artist": [song % 9 for song in songs], "genre": [[song % 2, song % 5] for song in songs]}
    catalogue = pa.table(columns | {"vector": [[1.0, song % 3] for song in songs]})
    every = np.arange(SONGS + 1) > 0
    found = side_information(catalogue, model=model, calendar=Calendar(), candidates=every, played=every, cut=DATA_END)
    return found.side if found else None


def make_trainer(
    train: TrainConfig = TRAIN, *, plain: bool = False, model: ModelConfig = MODEL, rows: int = 128, songs: int = SONGS
) -> Trainer:
    torch.manual_seed(train.seed)
    network = FuXiBeta(model)
    kind = PlainItemTable if plain else item_table
    table = song_table(rows, model.dim, train=train, side=side_of(model), kind=kind)
    candidates = torch.arange(1, songs + 1)
    return Trainer(network, table, train=train, candidates=candidates, plays=candidates % 7)


def learn(
    trainer: Trainer, manifest: Manifest, *, start: int, stop: int, rank: int = 0, world: int = 1
) -> list[list[float]]:
    """Global steps [start, stop) counted over epochs; returns [loss, positions, whether a rank leaves, listeners]."""
    batches = TrainingBatches(
        manifest,
        model=trainer.model.config,
        train=trainer.train,
        data_end=DATA_END,
        rank=rank,
        world_size=world,
        vocabulary_size=SONGS,
    )
    results = []
    per_epoch = batches.steps_per_epoch
    for epoch in range(start // per_epoch, -(-stop // per_epoch)):
        first = max(start - epoch * per_epoch, 0)
        for step, batch in enumerate(batches.epoch(epoch, start_step=first), start=epoch * per_epoch + first):
            if step < stop:
                leaves = step == LEAVES_AT and rank == world - 1
                (result,) = trainer.learn([batch], epoch=epoch, leaving=functools.partial(bool, leaves))
                results.append([result.loss, result.positions, float(result.leaving), result.listeners])
    return results


def worker(rank: int, world: int, port: int, folder: str, job: dict[str, Any]) -> None:
    """Steps of one rank, from the checkpoint of `job["start"]` where that is not 0, and a checkpoint at the end."""
    if world > 1:
        torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    trainer = make_trainer(job["train"], model=job["model"])
    start, stop = job["start"], job["stop"]
    if start:
        trainer.load(f"{folder}/{start}")
    results = learn(trainer, job["manifest"], start=start, stop=stop, rank=rank, world=world)
    trainer.save(f"{folder}/{stop}")
    if rank == 0:
        torch.save(results, f"{folder}/{stop}-losses.pt")
    dist.destroy_process_group()
    if world > 1:
        os._exit(0)  # TorchRec keeps gloo's threads alive, and beside them Python's own shutdown may abort


def learn_in(
    world: int,
    folder: Path,
    manifest: Manifest,
    *,
    start: int = 0,
    stop: int,
    train: TrainConfig = TRAIN,
    model: ModelConfig = MODEL,
):
    """The steps in `world` processes. Returns their results and every tensor of the last checkpoint."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = {"manifest": manifest, "start": start, "stop": stop, "train": train, "model": model}
    if world == 1:
        worker(0, 1, port, str(folder), job)
    else:
        mp.spawn(worker, args=(world, port, str(folder), job), nprocs=world)
    return torch.load(folder / f"{stop}-losses.pt"), read_checkpoint(str(folder / f"{stop}"), dim=model.dim)


def undisturbed(
    folder: Path,
    manifest: Manifest,
    *,
    start: int = 0,
    stop: int,
    train: TrainConfig = TRAIN,
    model: ModelConfig = MODEL,
):
    """The same steps in this process, without a process group or TorchRec."""
    trainer = make_trainer(train, plain=True, model=model)
    if start:
        trainer.load(f"{folder}/{start}")
    results = learn(trainer, manifest, start=start, stop=stop)
    trainer.save(str(folder / "reference"))
    return results, read_checkpoint(str(folder / "reference"), dim=model.dim)


def assert_same_run(found, expected) -> None:
    (results, tensors), (expected_results, expected_tensors) = found, expected
    np.testing.assert_allclose(results, expected_results[-len(results) :], rtol=1e-5)
    assert tensors.keys() == expected_tensors.keys()
    for name, tensor in tensors.items():
        is_weight = name.startswith("model.") or name.endswith("weight")
        absolute, relative = (1e-5, 1e-4) if is_weight else (1e-3, 1e-3)  # moments are gradients: of another scale
        np.testing.assert_allclose(tensor, expected_tensors[name], atol=absolute, rtol=relative, err_msg=name)


def test_two_sharded_ranks_equal_one_unsharded_process_with_dropout(tmp_path: Path, manifest: Manifest) -> None:
    expected = undisturbed(tmp_path, manifest, stop=20)
    found = learn_in(2, tmp_path, manifest, stop=20)
    assert len(found[0]) == 20 and sum(listeners for *_, listeners in found[0]) > 100
    assert_same_run(found, expected)
    assert found[0][-1][0] < found[0][0][0]
    assert [step for step, (_, _, leaving, _) in enumerate(found[0]) if leaving] == [LEAVES_AT]  # as rank 0 was told


def test_two_ranks_with_a_sharded_adamw_table_equal_one_with_a_plain_one(tmp_path: Path, manifest: Manifest) -> None:
    train = dataclasses.replace(TRAIN, item_optimizer="adamw", completion_weight=0.5)
    expected = undisturbed(tmp_path, manifest, stop=8, train=train)  # the plain table
    assert_same_run(learn_in(2, tmp_path, manifest, stop=8, train=train), expected)


@pytest.mark.parametrize(("worlds", "optimizer"), [((2, 1), "rowwise_adagrad"), ((1, 2), "adamw")])
def test_a_run_resumed_in_mid_epoch_at_another_world_size_equals_an_undisturbed_one(
    tmp_path: Path, manifest: Manifest, worlds: tuple[int, int], optimizer: Literal["adamw", "rowwise_adagrad"]
) -> None:
    train = dataclasses.replace(TRAIN, item_optimizer=optimizer)
    expected = undisturbed(tmp_path, manifest, stop=12, train=train)
    learn_in(worlds[0], tmp_path, manifest, stop=7, train=train)
    assert_same_run(learn_in(worlds[1], tmp_path, manifest, start=7, stop=12, train=train), expected)


@pytest.mark.parametrize(("worlds", "optimizer"), [((2, 1), "rowwise_adagrad"), ((1, 2), "adamw")])
def test_a_run_with_side_information_is_the_same_whatever_kills_it_and_on_however_many_ranks(
    tmp_path: Path, manifest: Manifest, worlds: tuple[int, int], optimizer: Literal["adamw", "rowwise_adagrad"]
) -> None:
    """And with everything that a rank draws or keeps: negatives of the global batch, windows, the running average."""
    train = dataclasses.replace(TRAIN, item_optimizer=optimizer, **EVERYTHING)
    model = dataclasses.replace(MODEL, side=("artist", "genre"), content="vector")
    expected = undisturbed(tmp_path, manifest, stop=12, train=train, model=model)
    assert {"average.steps", "average.model.positions", "average.items.side.weight"} <= expected[1].keys()
    assert {"completion_head.weight", "dense.exp_avg.completion_head.weight"} <= expected[1].keys()
    assert expected[1]["items.side.weight"].any() and expected[1]["items.content.weight"].any()
    learn_in(worlds[0], tmp_path, manifest, stop=7, train=train, model=model)
    found = learn_in(worlds[1], tmp_path, manifest, start=7, stop=12, train=train, model=model)
    assert_same_run(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adamw"])
def test_a_run_goes_on_at_one_then_three_then_two_ranks_with_all_that_a_checkpoint_holds(
    tmp_path: Path, manifest: Manifest, optimizer: Literal["adamw", "rowwise_adagrad"]
) -> None:
    """Shards of unequal sizes too: 128 rows, and a side table, over three ranks."""
    train = dataclasses.replace(TRAIN, item_optimizer=optimizer, **EVERYTHING)
    model = dataclasses.replace(MODEL, side=("artist", "genre"), content="vector")
    expected = undisturbed(tmp_path, manifest, stop=9, train=train, model=model)
    learn_in(1, tmp_path, manifest, stop=3, train=train, model=model)
    learn_in(3, tmp_path, manifest, start=3, stop=6, train=train, model=model)
    found = learn_in(2, tmp_path, manifest, start=6, stop=9, train=train, model=model)
    assert_same_run(found, expected)
    for name, tensor in found[1].items():
        if name.startswith(("model.", "completion_head.")):
            np.testing.assert_allclose(tensor, expected[1][name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("wrote", "reads", "said"),
    [
        ({"ema": 0.9}, {}, r"has average\.items\.weight, which this training lacks: set train\.ema as it was"),
        ({}, {"ema": 0.9}, r"lacks average\.\S+, which this training has: set train\.ema"),
        ({"completion_weight": 0.5}, {}, r"has completion_head\.bias, .*: set train\.completion_weight"),
        ({}, {"completion_weight": 0.5}, r"lacks completion_head\.bias, .*: set train\.completion_weight"),
        ({"item_optimizer": "adamw"}, {}, r"(has|lacks) items\.\S+, .*: set train\.item_optimizer"),
        ({"side": ("artist",)}, {}, r"has items\.side\.\S+, .*: set model\.side"),
        ({}, {"content": "vector"}, r"lacks items\.content\.\S+, .*: set model\.content"),
        ({"layers": 1}, {}, r"lacks \S+, which this training has: set the settings of the model"),
        ({"dim": 12}, {}, r"is of size \(.*12.*\), of this training \(.*10.*\): set the section model"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_in_one_line(
    tmp_path: Path, wrote: dict[str, Any], reads: dict[str, Any], said: str
) -> None:
    def made(settings: dict[str, Any]) -> Trainer:
        of_model = {name: value for name, value in settings.items() if hasattr(MODEL, name)}
        of_train = {name: value for name, value in settings.items() if name not in of_model}
        model = dataclasses.replace(MODEL, **of_model)
        return make_trainer(dataclasses.replace(TRAIN, **of_train), plain=True, model=model)

    made(wrote).save(str(tmp_path / "first"))
    trainer = made(reads)
    before = {name: tensor.clone() for name, tensor in trainer.state().items()}
    with pytest.raises(InputError, match=said) as caught:
        trainer.load(str(tmp_path / "first"))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.state().items())


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adamw"])
def test_a_sharded_run_goes_on_with_a_plain_table_and_back(
    tmp_path: Path, manifest: Manifest, optimizer: Literal["adamw", "rowwise_adagrad"]
) -> None:
    """One GPU alone trains with a plain table; both kinds are as wide where D is a multiple of 4."""
    train, model = dataclasses.replace(TRAIN, item_optimizer=optimizer), dataclasses.replace(MODEL, dim=12)
    expected = undisturbed(tmp_path, manifest, stop=12, train=train, model=model)
    (tmp_path / "reference").rename(tmp_path / "12-undisturbed")
    learn_in(2, tmp_path, manifest, stop=5, train=train, model=model)
    undisturbed(tmp_path, manifest, start=5, stop=9, train=train, model=model)
    (tmp_path / "reference").rename(tmp_path / "9")
    found = learn_in(1, tmp_path, manifest, start=9, stop=12, train=train, model=model)
    assert_same_run(found, expected)


def test_the_running_average_is_that_of_a_loop_is_exported_and_goes_on_bit_for_bit(
    tmp_path: Path, manifest: Manifest
) -> None:
    train = dataclasses.replace(TRAIN, ema=0.8)
    trainer = make_trainer(train, plain=True)
    first = trainer.model.state_dict()["positions"].clone()
    averages: list[dict[str, torch.Tensor]] = []
    for step in range(1, 6):
        learn(trainer, manifest, start=step - 1, stop=step)
        now = {"positions": trainer.model.state_dict()["positions"], "items": trainer.table.full_weight()}
        decay = min(0.8, (step - 1) / (step + 9))
        before = averages[-1] if averages else now
        averages.append({name: decay * before[name] + (1 - decay) * now[name] for name in now})
        if step == 3:
            trainer.save(str(tmp_path / "third"))
    trainer.save(str(tmp_path / "last"))
    weight = trainer.table.full_weight()
    eligible = np.arange(SONGS + 1) > 0
    trained, _ = trained_model(str(tmp_path / "last"), model=MODEL, train=train, candidates=eligible)
    torch.testing.assert_close(trained.item_vectors, averages[-1]["items"])
    torch.testing.assert_close(trained.model.state_dict()["positions"], averages[-1]["positions"])
    with trainer.averaged():
        assert torch.equal(trainer.table.full_weight(), trained.item_vectors)
    assert torch.equal(trainer.table.full_weight(), weight) and not torch.equal(weight, trained.item_vectors)
    assert not torch.equal(first, trained.model.state_dict()["positions"])

    again = make_trainer(train, plain=True)
    again.load(str(tmp_path / "third"))
    learn(again, manifest, start=3, stop=5)
    again.save(str(tmp_path / "again"))
    expected = read_checkpoint(str(tmp_path / "last"), dim=MODEL.dim)
    for name, tensor in read_checkpoint(str(tmp_path / "again"), dim=MODEL.dim).items():
        assert torch.equal(tensor, expected[name]), name


def test_a_step_without_targets_changes_no_item_and_counts_nothing(make_shards) -> None:
    manifest = make_shards([{1: [(3, 5, 100)]}], vocabulary_size=SONGS, data_end=DATA_END)
    trainer = make_trainer(plain=True)
    before = trainer.table.full_weight()
    assert learn(trainer, manifest, start=0, stop=1) == [[0.0, 0, 0, 1]]
    assert torch.equal(trainer.table.full_weight(), before)


def test_a_loss_that_is_not_finite_stops_training_before_weights_change(manifest: Manifest) -> None:
    trainer = make_trainer(plain=True)
    with torch.no_grad():
        trainer.model.positions[0, 0] = math.inf
    before = trainer.table.full_weight()
    with pytest.raises(DivergedError, match="the training loss is nan"):
        learn(trainer, manifest, start=0, stop=1)
    assert torch.equal(trainer.table.full_weight(), before)


def test_a_checkpoint_undoes_what_is_not_finite_bit_for_bit(tmp_path: Path, manifest: Manifest) -> None:
    trainer = make_trainer(plain=True)
    learn(trainer, manifest, start=0, stop=3)
    trainer.check_finite()
    trainer.save(str(tmp_path / "good"))
    expected = {name: tensor.clone() for name, tensor in trainer.state().items()}
    for name in ("model.positions", "items.weight", "items.accumulator", "dense.exp_avg.positions"):
        for value in (math.nan, math.inf, -math.inf):
            trainer.state()[name].view(-1)[0] = value
            with pytest.raises(DivergedError, match=rf"{name} has values that are not finite"):
                trainer.check_finite()
            trainer.load(str(tmp_path / "good"))
            assert all(torch.equal(tensor, expected[name]) for name, tensor in trainer.state().items())


def test_warm_start_copies_known_rows_and_moments_and_decays_accumulators(tmp_path: Path, manifest: Manifest) -> None:
    parent = make_trainer(plain=True)
    learn(parent, manifest, start=0, stop=4)
    parent.save(str(tmp_path / "parent"))
    tensors = read_checkpoint(str(tmp_path / "parent"), dim=MODEL.dim)

    torch.manual_seed(99)
    child = make_trainer(dataclasses.replace(TRAIN, seed=6), plain=True)
    child.warm_start(tensors, known_rows=60)
    state = child.state()
    for name in ("model.positions", "dense.exp_avg.positions", "dense.step.positions"):
        assert torch.equal(state[name], tensors[name]), name
    assert torch.equal(state["items.weight"][:60], tensors["items.weight"][:60])
    assert torch.equal(state["items.weight"][60:], initial_rows(60, 128, dim=MODEL.dim, seed=6))
    assert tensors["items.accumulator"][:60].any()
    assert torch.equal(state["items.accumulator"][:60], tensors["items.accumulator"][:60] * 0.5)
    assert not state["items.accumulator"][60:].any()


OPTIMIZERS: tuple[Literal["rowwise_adagrad", "adamw"], ...] = ("rowwise_adagrad", "adamw")
GROWN_SONGS, GROWN_ROWS = 150, 192  # more songs than the parent's table of 128 rows has room for


def grow(train: TrainConfig, folder: str, manifest: Manifest, **ranks: Any) -> list[list[float]]:
    """Start from the parent in a larger table; saves it before and after two steps, and returns these."""
    trainer = make_trainer(train, rows=GROWN_ROWS, songs=GROWN_SONGS, plain="rank" not in ranks)
    parent = read_checkpoint(f"{folder}/parent-{train.item_optimizer}", dim=MODEL.dim)
    trainer.warm_start(parent, known_rows=SONGS + 1)
    kind = "plain" if not ranks else "sharded"
    trainer.save(f"{folder}/{kind}-{train.item_optimizer}-start")
    results = learn(trainer, manifest, start=0, stop=2, **ranks)
    trainer.save(f"{folder}/{kind}-{train.item_optimizer}-end")
    return results


def growing_worker(rank: int, port: int, folder: str, manifest: Manifest) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for optimizer in OPTIMIZERS:
        train = dataclasses.replace(TRAIN, item_optimizer=optimizer)
        results = grow(train, folder, manifest, rank=rank, world=2)
        torch.save(results, f"{folder}/{optimizer}-{rank}.pt")
    dist.destroy_process_group()
    os._exit(0)


def test_a_table_that_new_songs_outgrow_is_copied_into_a_larger_one(tmp_path: Path, manifest: Manifest) -> None:
    parent = make_trainer(plain=True)
    learn(parent, manifest, start=0, stop=4)
    parent.save(str(tmp_path / "parent-rowwise_adagrad"))
    grow(TRAIN, str(tmp_path), manifest)
    before = parent.state()
    start = read_checkpoint(str(tmp_path / "plain-rowwise_adagrad-start"), dim=MODEL.dim)
    known = slice(SONGS + 1)
    assert torch.equal(start["items.weight"][known], before["items.weight"][known])
    assert torch.equal(start["items.accumulator"][known], before["items.accumulator"][known] * TRAIN.accumulator_decay)
    assert start["items.accumulator"][known].any() and len(start["items.weight"]) == GROWN_ROWS


@pytest.mark.slow
def test_a_table_that_new_songs_outgrow_is_copied_into_a_larger_one_on_two_ranks_as_on_one(
    tmp_path: Path, manifest: Manifest
) -> None:
    for optimizer in OPTIMIZERS:
        parent = make_trainer(dataclasses.replace(TRAIN, item_optimizer=optimizer), plain=True)
        learn(parent, manifest, start=0, stop=4)
        parent.save(str(tmp_path / f"parent-{optimizer}"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(growing_worker, args=(port, str(tmp_path), manifest), nprocs=2)
    for optimizer in OPTIMIZERS:
        train = dataclasses.replace(TRAIN, item_optimizer=optimizer)
        expected = grow(train, str(tmp_path), manifest)

        def saved(name: str, optimizer: str = optimizer) -> dict[str, torch.Tensor]:
            return read_checkpoint(str(tmp_path / name.format(optimizer)), dim=MODEL.dim)

        parent, start, alone = saved("parent-{}"), saved("sharded-{}-start"), saved("plain-{}-start")
        assert start.keys() == alone.keys() == parent.keys()
        decayed = (
            {"items.accumulator": parent["items.accumulator"] * train.accumulator_decay}
            if (optimizer == "rowwise_adagrad")
            else {}
        )
        for name, tensor in (parent | decayed).items():
            known = slice(SONGS + 1) if name.startswith("items.") and tensor.ndim else ...
            torch.testing.assert_close(start[name][known], tensor[known], atol=0, rtol=1e-6, msg=name)
            torch.testing.assert_close(start[name], alone[name], atol=0, rtol=1e-6, msg=name)
            assert name != "items.weight" or torch.equal(start[name][known], tensor[known])
        new = slice(SONGS + 1, None)
        assert start["items.weight"].shape == (GROWN_ROWS, MODEL.dim)
        first_rows = initial_rows(SONGS + 1, GROWN_ROWS, dim=MODEL.dim, seed=TRAIN.seed)
        assert torch.equal(start["items.weight"][new], first_rows)
        found, end = torch.load(tmp_path / f"{optimizer}-0.pt"), saved("sharded-{}-end")
        assert_same_run((found, end), (expected, saved("plain-{}-end")))
        assert not torch.equal(end["items.weight"][SONGS + 1 : GROWN_SONGS + 1], first_rows[: GROWN_SONGS - SONGS])


def test_warm_start_under_another_item_optimizer_starts_its_state_afresh(tmp_path: Path, manifest: Manifest) -> None:
    parent = make_trainer(plain=True)
    learn(parent, manifest, start=0, stop=2)
    parent.save(str(tmp_path / "parent"))
    child = make_trainer(dataclasses.replace(TRAIN, item_optimizer="adamw"), plain=True)
    child.warm_start(read_checkpoint(str(tmp_path / "parent"), dim=MODEL.dim), known_rows=91)
    assert torch.equal(child.table.full_weight()[:91], parent.table.full_weight()[:91])
    assert not child.table.full_optimizer_state()["exp_avg"].any()


def test_an_exported_checkpoint_scores_as_the_trainer_does(tmp_path: Path, manifest: Manifest) -> None:
    trainer = make_trainer(plain=True)
    learn(trainer, manifest, start=0, stop=3)
    trainer.save(str(tmp_path / "last"))
    eligible = np.arange(SONGS + 1) % 2 == 1
    trained, state = trained_model(str(tmp_path / "last"), model=MODEL, train=TRAIN, candidates=eligible)
    assert torch.equal(trained.item_vectors, trainer.table.full_weight())
    assert trained.vocabulary_size == SONGS
    assert trained.candidates.nonzero().flatten().tolist() == list(range(1, SONGS + 1, 2))
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(trained.model.state_dict()[name], tensor)
    assert {"items.accumulator", "dense.exp_avg.positions"} <= state.keys()
    with torch.no_grad():
        trainer.model.positions[0, 0] = math.nan
    trainer.save(str(tmp_path / "broken"))
    with pytest.raises(DivergedError, match=r"model\.positions has values that are not finite"):
        trained_model(str(tmp_path / "broken"), model=MODEL, train=TRAIN, candidates=eligible)


def test_candidates_are_popular_songs_that_were_played_before_the_cut(make_shards) -> None:
    before = {1: [(1, 10, 100), (2, 20, 10), (3, 30, 100), (5, 35, 100)], 2: [(1, 10, 100), (2, 15, 10), (3, 40, 10)]}
    since = {1: [(4, 90, 100)], 2: [(4, 80, 100), (5, 95, 100), (1, 99, 100)]}
    train = TrainConfig(min_listeners=2)
    for events in (before, {user: before[user] + since[user] for user in before}):  # what came since changes nothing
        manifest = make_shards([events], vocabulary_size=6, data_end=100)
        found = candidate_songs(manifest, train=train, data_end=50)
        assert found.nonzero()[0].tolist() == [1, 3]  # 2 only skipped, 4 only since, 5 heard by one until then
    whole = candidate_songs(manifest, train=dataclasses.replace(train, protocol="leave_one_out"), data_end=50)
    assert whole.nonzero()[0].tolist() == [1, 2, 3, 4, 5, 6]
