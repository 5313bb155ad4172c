"""Item tables: the plain and the sharded one are the same function of the same gradients."""

import contextlib
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fuxi_beta.config import TrainConfig
from fuxi_beta.training.item_table import PlainItemTable, ShardedItemTable, capacity_rows, initial_rows, item_table

ROWS, DIM = 128, 6  # not a multiple of 4, so that the sharded table is wider than its vectors
ADAGRAD = TrainConfig(item_optimizer="rowwise_adagrad", item_lr=0.05, item_eps=1e-8)
ADAMW = TrainConfig(item_optimizer="adamw")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def process_group(rank: int, world: int, port: int):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def step_ids(step: int, rank: int) -> torch.Tensor:
    """Unique ids of one rank, none of them padding; some are shared by the ranks, and rank 1 has none at step 2."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    ids = 1 + torch.randperm(ROWS - 1, generator=generator)[:40].sort().values
    return ids[:0] if (step, rank) == (2, 1) else ids


def step_loss(table, ids: torch.Tensor, step: int) -> torch.Tensor:
    """A loss with another gradient in every row and column."""
    slope = torch.sin(ids[:, None].double() * 0.37 + torch.arange(DIM) + step).float()
    vectors = table(ids)
    return (vectors * slope).sum() + vectors.square().sum()


def train_plain(steps: int) -> PlainItemTable:
    """The sum of both ranks' losses in one process."""
    table = PlainItemTable(ROWS, DIM, train=ADAGRAD)
    for step in range(steps):
        table.zero_grad()
        (step_loss(table, step_ids(step, 0), step) + step_loss(table, step_ids(step, 1), step)).backward()
        table.step()
    return table


def sharded_worker(rank: int, port: int, folder: str, steps: int) -> None:
    torch.set_num_threads(1)
    with process_group(rank, 2, port):
        table = ShardedItemTable(ROWS, DIM, train=ADAGRAD)
        for step in range(steps):
            (step_loss(table, step_ids(step, rank), step) * 2).backward()
        weight, state = table.full_weight(), table.full_optimizer_state()
        if rank == 0:
            torch.save((weight, state["accumulator"]), f"{folder}/trained.pt")
    os._exit(0)  # TorchRec keeps gloo's threads alive, and beside them Python's own shutdown may abort


def test_rowwise_adagrad_of_the_plain_table_equals_fbgemm_on_two_sharded_ranks(tmp_path: Path) -> None:
    mp.spawn(sharded_worker, args=(free_port(), str(tmp_path), 6), nprocs=2)
    weight, accumulator = torch.load(tmp_path / "trained.pt")
    plain = train_plain(6)
    torch.testing.assert_close(weight, plain.full_weight(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(accumulator, plain.full_optimizer_state()["accumulator"], atol=1e-6, rtol=1e-5)
    assert (weight - initial_rows(0, ROWS, dim=DIM, seed=1)).abs().max() > 0.1


def test_rowwise_adagrad_matches_a_hand_worked_step() -> None:
    table = PlainItemTable(64, 2, train=ADAGRAD)
    before = table.full_weight()
    (table(torch.tensor([3])) * torch.tensor([[3.0, 4.0]])).sum().backward()
    table.step()
    mean_square = (9 + 16) / 2
    expected = before[3] - 0.05 * torch.tensor([3.0, 4.0]) / (mean_square**0.5 + 1e-8)
    torch.testing.assert_close(table.full_weight()[3], expected)
    assert table.full_optimizer_state()["accumulator"].nonzero().flatten().tolist() == [3]
    assert torch.equal(table.full_weight()[4:], before[4:])


def test_dense_and_sparse_gradients_give_the_same_adagrad_step() -> None:
    sparse, dense = PlainItemTable(64, 4, train=ADAGRAD), PlainItemTable(64, 4, train=ADAGRAD)
    dense.sparse = False
    for table in (sparse, dense):
        for _ in range(3):
            table.zero_grad()
            table(torch.tensor([1, 5, 9])).square().sum().backward()
            table.step()
    torch.testing.assert_close(sparse.full_weight(), dense.full_weight(), atol=1e-7, rtol=1e-6)


def test_adamw_of_the_table_equals_torch_adamw_on_an_embedding() -> None:
    table = PlainItemTable(64, 4, train=ADAMW)
    reference = torch.nn.Embedding.from_pretrained(table.full_weight(), freeze=False)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(4):
        ids = torch.tensor([1 + step, 20, 30])
        for lookup, learner in ((table, table), (reference, optimizer)):
            learner.zero_grad()
            lookup(ids).pow(3).sum().backward()
            learner.step()
    torch.testing.assert_close(table.full_weight(), reference.weight.detach(), atol=0, rtol=0)


def test_initial_rows_do_not_depend_on_capacity_or_on_where_a_shard_starts() -> None:
    whole = initial_rows(0, 40_000, dim=6, seed=7)
    assert torch.equal(PlainItemTable(64, 6, train=TrainConfig(seed=7)).full_weight(), whole[:64])
    assert torch.equal(initial_rows(20_000, 33_000, dim=6, seed=7), whole[20_000:33_000])
    assert not torch.equal(initial_rows(0, 64, dim=6, seed=8), whole[:64])


def test_initial_rows_are_a_normal_cut_at_two_sigma_with_a_zero_padding_row() -> None:
    values = initial_rows(0, 20_001, dim=50, seed=3)
    assert not values[0].any()
    sample = values[1:].numpy().ravel() / 0.02
    assert np.abs(sample).max() <= 2 and abs(sample.mean()) < 5e-3
    assert abs(sample.std() - 0.8796) < 2e-3  # of a standard normal cut at two sigma
    correlation = np.corrcoef(values[1:-1, 0], values[2:, 0])[0, 1]
    assert abs(correlation) < 0.03


def test_load_full_overwrites_the_first_rows_and_leaves_new_ones_as_initialised() -> None:
    table = PlainItemTable(128, 4, train=ADAGRAD)
    weight = torch.arange(40.0).reshape(10, 4)
    table.load_full(weight, {"accumulator": torch.full((10,), 2.5)})
    assert torch.equal(table.full_weight()[:10], weight)
    assert torch.equal(table.full_weight()[10:], initial_rows(10, 128, dim=4, seed=1))
    assert table.full_optimizer_state()["accumulator"].tolist() == [2.5] * 10 + [0.0] * 118
    with pytest.raises(ValueError, match="129 rows do not fit"):
        table.load_full(torch.zeros(129, 4))


ADAGRAD_STATE = {"accumulator": torch.full((70,), 0.5)}
ADAMW_STATE = {"step": torch.tensor(3.0), "exp_avg": torch.full((70, 6), 0.1), "exp_avg_sq": torch.full((70, 6), 0.2)}


@pytest.mark.parametrize(("train", "state"), [(ADAGRAD, ADAGRAD_STATE), (ADAMW, ADAMW_STATE)], ids=["adagrad", "adamw"])
def test_load_full_of_a_sharded_table_equals_the_plain_one(train: TrainConfig, state: dict[str, torch.Tensor]) -> None:
    with process_group(0, 1, free_port()):
        sharded, plain = item_table(128, 6, train=train), PlainItemTable(128, 6, train=train)
        assert isinstance(sharded, ShardedItemTable)
        for table in (sharded, plain):
            table.load_full(torch.ones(70, 6), state)
            table.zero_grad()
            table(torch.tensor([5, 100])).square().sum().backward()
            table.step()
        torch.testing.assert_close(sharded.full_weight(), plain.full_weight(), atol=1e-7, rtol=1e-6)
        with pytest.raises(ValueError, match=r"item indices 0\.\.128 are outside"):
            sharded(torch.tensor([0, 128]))
        for name, expected in plain.full_optimizer_state().items():
            torch.testing.assert_close(sharded.full_optimizer_state()[name], expected, atol=1e-6, rtol=1e-5)


def test_an_index_outside_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"item indices -1\.\.3 are outside the table's rows 0\.\.63"):
        PlainItemTable(64, 4, train=ADAGRAD)(torch.tensor([-1, 3]))


def test_capacity_has_room_for_padding_and_the_margin_and_is_a_multiple_of_64() -> None:
    assert [capacity_rows(n, 0.1) for n in (0, 57, 58, 1000)] == [64, 64, 128, 1152]
    assert capacity_rows(63, 0.0) == 64 and capacity_rows(64, 0.0) == 128
