"""The table with side information: the dense sum by plain autograd, on one process and on two sharded ranks."""

import dataclasses
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
from fuxi_beta.data.side import SideInformation, SongSide, side_information
from fuxi_beta.models.fuxi_beta import FuXiBeta
from fuxi_beta.training.item_table import ItemTable, PlainItemTable, ShardedItemTable, initial_rows
from fuxi_beta.training.song_table import CONTENT, SIDE, SongTable, logical_song_state, song_table, song_vectors
from fuxi_beta.training.trainer import ITEM_WEIGHT, Trainer, read_checkpoint, trained_model
from pipelines.calendar import Calendar

SONGS, ROWS, DIM, WIDTH = 50, 64, 6, 3  # of vectors, not a multiple of 4: sharded tables are wider
ADAGRAD = TrainConfig(item_optimizer="rowwise_adagrad", item_lr=0.05, item_eps=1e-8, lr=0.01)
ADAMW = TrainConfig(item_optimizer="adamw", lr=0.01)
EVERY_SONG = np.arange(SONGS + 1) > 0


def catalogue(songs: int = SONGS) -> pa.Table:
    """Songs with one of 7 artists, none to 3 of 5 genres, and a vector each but for every fifth; some know nothing."""
    random = np.random.default_rng(2)
    genres = [[f"g{g}" for g in random.choice(5, random.integers(0, 4), replace=False)] for _ in range(songs)]
    vectors = [None if song % 5 == 0 else random.normal(size=WIDTH).tolist() for song in range(songs)]
    artists = [None if song % 11 == 0 else f"a{random.integers(7)}" for song in range(songs)]
    return pa.table({"artist": artists, "genre": genres, "vector": pa.array(vectors, pa.list_(pa.float64()))})


def information(
    side: tuple[str, ...] = ("artist", "genre"), content: str | None = "vector", songs: int = SONGS, **values: Any
) -> SideInformation:
    options = {"candidates": np.arange(songs + 1) > 0, "played": np.arange(songs + 1) > 0, "cut": 0} | values
    model = ModelConfig(side=side, content=content)
    found = side_information(catalogue(songs), model=model, calendar=Calendar(), **options)
    assert found is not None
    return found


class DenseTable:
    """The same function with an incidence matrix [V, S], of which autograd knows the gradients."""

    def __init__(self, side: SongSide, train: TrainConfig) -> None:
        self.weight = torch.nn.Parameter(initial_rows(0, ROWS, dim=DIM, seed=train.seed))
        self.side = torch.nn.Parameter(torch.zeros(64, DIM))
        self.map = torch.nn.Parameter(torch.zeros(WIDTH, DIM))
        self.incidence, self.content = torch.zeros(ROWS, 64), torch.zeros(ROWS, WIDTH)
        for song in range(len(side)):
            for entry in range(side.offsets[song], side.offsets[song + 1]):
                self.incidence[song, int(side.rows[entry])] += float(side.weights[entry])
        assert side.content is not None
        self.content[: len(side)] = torch.from_numpy(side.content)

    def vectors(self) -> torch.Tensor:
        return self.weight + self.incidence @ self.side + self.content @ self.map


def step_ids(step: int, rank: int) -> torch.Tensor:
    """Distinct songs of one rank, ascending; rank 1 has none at step 2."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    ids = 1 + torch.randperm(SONGS, generator=generator)[:20].sort().values
    return ids[:0] if (step, rank) == (2, 1) else ids


def step_loss(vectors: torch.Tensor, ids: torch.Tensor, step: int) -> torch.Tensor:
    """A loss with another gradient in every row and column."""
    slope = torch.sin(ids[:, None].double() * 0.37 + torch.arange(DIM) + step).float()
    return (vectors * slope).sum() + vectors.square().sum()


def dense_steps(train: TrainConfig, steps: int) -> dict[str, torch.Tensor]:
    """Both ranks' losses in one process, by autograd and an optimizer written out for every row."""
    table = DenseTable(information().side, train)
    adamw = torch.optim.AdamW([table.map], lr=train.lr, betas=train.betas, weight_decay=train.weight_decay)
    on_rows = torch.optim.AdamW([table.weight, table.side], lr=train.lr, betas=train.betas, weight_decay=0.0)
    accumulators = {parameter: torch.zeros(len(parameter)) for parameter in (table.weight, table.side)}
    for step in range(steps):
        for optimizer in (adamw, on_rows):
            optimizer.zero_grad()
        vectors = table.vectors()
        sum(step_loss(vectors[ids], ids, step) for ids in (step_ids(step, 0), step_ids(step, 1))).backward()  # type: ignore[union-attr]
        adamw.step()
        if train.item_optimizer == "adamw":
            on_rows.step()
            continue
        for parameter, accumulator in accumulators.items():
            gradient = parameter.grad
            assert gradient is not None
            accumulator.add_(gradient.square().mean(dim=1))
            with torch.no_grad():
                parameter.sub_(train.item_lr * gradient / (accumulator.sqrt() + train.item_eps)[:, None])
    return {
        "weight": table.weight.detach(),
        f"{SIDE}weight": table.side.detach(),
        f"{CONTENT}weight": table.map.detach(),
        "vectors": table.vectors().detach(),
    }


def assert_as_dense(parts: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name in ("weight", f"{SIDE}weight", f"{CONTENT}weight"):
        torch.testing.assert_close(parts[name], expected[name], atol=2e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    own = torch.from_numpy(EVERY_SONG)
    folded = song_vectors(parts, information().side, own)
    torch.testing.assert_close(folded[1 : SONGS + 1], expected["vectors"][1 : SONGS + 1], atol=2e-6, rtol=1e-5)
    assert parts[f"{SIDE}weight"].abs().max() > 0.01 and parts[f"{CONTENT}weight"].abs().max() > 0.01


@pytest.mark.parametrize("train", [ADAGRAD, ADAMW], ids=["adagrad", "adamw"])
def test_a_plain_table_learns_as_the_dense_sum_does(train: TrainConfig) -> None:
    table = song_table(ROWS, DIM, train=train, side=information().side)
    assert isinstance(table, SongTable) and isinstance(table.items, PlainItemTable)
    for step in range(6):
        table.zero_grad()
        both = torch.cat([step_ids(step, 0), step_ids(step, 1)]).unique()
        vectors = table(both)
        losses = [
            step_loss(vectors[torch.searchsorted(both, ids)], ids, step)
            for ids in (step_ids(step, 0), step_ids(step, 1))
        ]
        sum(losses).backward()  # type: ignore[union-attr]
        table.step()
    assert_as_dense(table.full_parts(), dense_steps(train, 6))


def sharded_worker(rank: int, port: int, folder: str, train: TrainConfig) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    table = song_table(ROWS, DIM, train=train, side=information().side)
    assert isinstance(table, SongTable) and isinstance(table.side, ShardedItemTable) and table.map is not None
    assert table.replicated() == [table.map]
    for step in range(6):
        table.zero_grad()
        ids = step_ids(step, rank)
        (step_loss(table(ids), ids, step) * 2).backward()
        if table.map.grad is None:
            table.map.grad = torch.zeros_like(table.map)
        dist.all_reduce(table.map.grad)
        table.map.grad /= 2
        table.step()
    parts, state = table.full_parts(), table.full_optimizer_state()
    if rank == 0:
        torch.save((parts, state), f"{folder}/trained.pt")
    dist.barrier()
    os._exit(0)  # TorchRec keeps gloo's threads alive, and beside them Python's own shutdown may abort


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("train", [ADAGRAD, ADAMW], ids=["adagrad", "adamw"])
def test_two_sharded_ranks_learn_as_the_dense_sum_does(tmp_path: Path, train: TrainConfig) -> None:
    mp.spawn(sharded_worker, args=(free_port(), str(tmp_path), train), nprocs=2)
    parts, state = torch.load(tmp_path / "trained.pt")
    assert_as_dense(parts, dense_steps(train, 6))
    names = {"accumulator"} if train is ADAGRAD else {"step", "exp_avg", "exp_avg_sq"}
    content = {f"{CONTENT}{name}" for name in ("step", "exp_avg", "exp_avg_sq")}
    assert state.keys() == names | {SIDE + name for name in names} | content


def test_a_lookup_equals_the_folded_export_for_any_songs() -> None:
    table = learned_table()
    folded = song_vectors(table.full_parts(), information().side, torch.from_numpy(EVERY_SONG))
    for ids in (torch.arange(ROWS), torch.tensor([3, 17, 49]), torch.tensor([], dtype=torch.int64)):
        torch.testing.assert_close(table(ids).detach(), folded[ids], atol=1e-6, rtol=1e-6)


def learned_table(train: TrainConfig = ADAGRAD) -> ItemTable:
    table = song_table(ROWS, DIM, train=train, side=information().side)
    for step in range(4):
        table.zero_grad()
        ids = step_ids(step, 0)
        step_loss(table(ids), ids, step).backward()
        table.step()
    return table


def test_an_own_row_that_does_not_count_leaves_what_is_known_of_the_song() -> None:
    parts, side = learned_table().full_parts(), information().side
    own = torch.from_numpy(EVERY_SONG.copy())
    own[[4, 9]] = False
    folded, whole = song_vectors(parts, side, own), song_vectors(parts, side, torch.from_numpy(EVERY_SONG))
    torch.testing.assert_close(whole[[4, 9]] - folded[[4, 9]], parts["weight"][[4, 9]], atol=1e-6, rtol=1e-6)
    assert folded[[4, 9]].any(dim=1).all()
    kept = [song for song in range(ROWS) if song not in (4, 9)]
    assert torch.equal(folded[kept], whole[kept])


def test_side_information_changes_no_vector_at_the_start_and_its_rows_have_gradients() -> None:
    plain, table = PlainItemTable(ROWS, DIM, train=ADAMW), song_table(ROWS, DIM, train=ADAMW, side=information().side)
    ids = torch.arange(1, SONGS + 1)
    assert torch.equal(plain(ids), table(ids))
    step_loss(table(ids), ids, 0).backward()
    assert isinstance(table, SongTable) and isinstance(table.side, PlainItemTable) and table.map is not None
    gradient, used = table.side.weight.grad, information().vocabulary.rows
    assert gradient is not None and gradient[1:used].any(dim=1).all() and not gradient[used:].any()
    assert table.map.grad is not None and table.map.grad.all()


@pytest.mark.parametrize(("side", "content"), [((), "vector"), (("genre",), None)])
def test_columns_and_content_go_without_each_other(side: tuple[str, ...], content: str | None) -> None:
    known = information(side, content)
    table = song_table(ROWS, DIM, train=ADAGRAD, side=known.side)
    assert isinstance(table, SongTable) and (table.side is None) == (not side) and (table.map is None) == (not content)
    table(step_ids(0, 0)).square().sum().backward()
    table.step()
    ids = torch.arange(SONGS + 1)
    torch.testing.assert_close(table(ids).detach(), song_vectors(table.full_parts(), known.side, ids > 0)[: SONGS + 1])


# ---- in a trainer

MODEL = ModelConfig(dim=DIM, layers=1, max_history=16, side=("artist", "genre"), content="vector")


def make_trainer(known: SideInformation | None, train: TrainConfig = ADAGRAD) -> Trainer:
    torch.manual_seed(3)
    table = song_table(ROWS, DIM, train=train, side=known.side if known else None)
    return Trainer(FuXiBeta(MODEL), table, train=train, candidates=torch.arange(1, SONGS + 1))


def batches(make_batch, count: int = 4):
    return [make_batch([5, 0, 16, 9], songs=SONGS, seed=seed, target_share=0.6) for seed in range(count)]


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adamw"])
def test_a_run_that_was_killed_goes_on_as_one_that_was_not(
    tmp_path: Path, make_batch, optimizer: Literal["adamw", "rowwise_adagrad"]
) -> None:
    train = dataclasses.replace(ADAGRAD, item_optimizer=optimizer)
    undisturbed, killed = make_trainer(information(), train), make_trainer(information(), train)
    made = batches(make_batch)
    for batch in made:
        undisturbed.step(batch, epoch=0)
    for batch in made[:2]:
        killed.step(batch, epoch=0)
    killed.save(str(tmp_path / "two"))
    again = make_trainer(information(), train)
    again.load(str(tmp_path / "two"))
    for batch in made[2:]:
        again.step(batch, epoch=0)
    expected = undisturbed.state()
    assert {f"items.{SIDE}weight", f"items.{CONTENT}exp_avg"} <= expected.keys()
    for name, tensor in again.state().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_checkpoint_is_exported_as_plain_vectors_and_what_a_warm_start_needs(tmp_path: Path, make_batch) -> None:
    rare = EVERY_SONG.copy()
    rare[[7, 8]] = False
    known = information(candidates=rare)
    trainer = make_trainer(known)
    for batch in batches(make_batch):
        trainer.step(batch, epoch=0)
    trainer.save(str(tmp_path / "last"))
    trained, state = trained_model(
        str(tmp_path / "last"), model=MODEL, train=ADAGRAD, candidates=rare, information=known
    )
    parts = trainer.table.full_parts()
    torch.testing.assert_close(trained.item_vectors, song_vectors(parts, known.side, torch.from_numpy(known.own)))
    assert torch.equal(state[ITEM_WEIGHT], parts["weight"])
    assert torch.equal(state[f"items.{SIDE}weight"], parts[f"{SIDE}weight"])
    assert trained.candidates.sum() == SONGS - 2 and trained.as_of(0).candidates.sum() == SONGS
    assert not torch.equal(trained.item_vectors[7], parts["weight"][7])


def test_a_warm_start_from_a_model_without_side_information_begins_with_its_vectors(tmp_path: Path, make_batch) -> None:
    parent = make_trainer(None)
    for batch in batches(make_batch):
        parent.step(batch, epoch=0)
    parent.save(str(tmp_path / "parent"))
    child = make_trainer(information(), dataclasses.replace(ADAGRAD, seed=8))
    child.warm_start(read_checkpoint(str(tmp_path / "parent"), dim=DIM), known_rows=SONGS + 1)
    ids = torch.arange(SONGS + 1)
    assert torch.equal(child.table(ids), parent.table(ids))


def test_a_warm_start_keeps_rows_by_value_while_songs_and_values_come(tmp_path: Path, make_batch) -> None:
    """The child knows more songs, of more values, and a further column."""
    some = np.arange(SONGS + 1) < 12
    some[0] = False
    before = information(("artist",), candidates=some, played=some)
    parent = make_trainer(before)
    for batch in batches(make_batch):
        parent.step(batch, epoch=0)
    parent.save(str(tmp_path / "parent"))
    after = information(("genre", "artist"), parent=before.vocabulary)
    assert after.vocabulary.rows > before.vocabulary.rows
    child = make_trainer(after, dataclasses.replace(ADAGRAD, seed=8))
    tensors = read_checkpoint(str(tmp_path / "parent"), dim=DIM)
    child.warm_start(tensors, known_rows=SONGS + 1)
    assert isinstance(child.table, SongTable) and child.table.side is not None
    old = before.vocabulary.rows
    weight, accumulator = (child.state()[f"items.{SIDE}{name}"] for name in ("weight", "accumulator"))
    assert weight[1:old].any(dim=1).all() and torch.equal(weight[:old], tensors[f"items.{SIDE}weight"][:old])
    assert torch.equal(accumulator[:old], tensors[f"items.{SIDE}accumulator"][:old] * 0.5)
    assert not weight[old:].any()
    same = torch.arange(1, 12)  # whose values the parent knew
    assert torch.equal(child.table(same), parent.table(same))


def test_the_state_of_a_wider_table_is_converted_part_by_part() -> None:
    wide = {"weight": torch.ones(4, 8), "accumulator": torch.ones(4)}
    state = wide | {SIDE + name: tensor * 2 for name, tensor in wide.items()} | {f"{CONTENT}exp_avg": torch.ones(3, 6)}
    found = logical_song_state(state, dim=6)
    assert found["weight"].shape == found[f"{SIDE}weight"].shape == (4, 6)
    assert found[f"{SIDE}accumulator"].tolist() == pytest.approx([2 * 8 / 6] * 4)
    assert torch.equal(found[f"{CONTENT}exp_avg"], torch.ones(3, 6))
