"""Row-wise Adagrad in Triton and in plain torch against its definition, row by row in float64."""

import pytest
import torch
from torch import Tensor

from fuxi_beta import ops
from fuxi_beta.ops import reference
from fuxi_beta.ops.triton import optimizer, tuning

DEVICE = "cpu" if tuning.INTERPRETED else "cuda"
LR, EPS = 0.03, 1e-8
IMPLEMENTATIONS = {"triton": (optimizer, DEVICE), "reference": (reference, "cpu")}


@pytest.fixture(autouse=True)
def _automatic_again():
    yield
    ops.use("auto")


class Case:
    """A table of random numbers and gradients of some of its rows, between which the padding row comes again."""

    def __init__(self, rows: int, dim: int, *, padding: int = 3, table_rows: int = 70) -> None:
        draw = torch.Generator().manual_seed(rows * 10_000 + dim)
        self.weight = torch.randn(table_rows, dim, generator=draw)
        self.accumulator = torch.rand(table_rows, generator=draw) * 0.2
        self.accumulator[::2] = 0
        songs = torch.randperm(table_rows - 1, generator=draw)[:rows] + 1
        place = torch.randperm(rows + padding, generator=draw)
        self.rows = torch.cat([songs, torch.zeros(padding, dtype=torch.int64)])[place]
        self.gradient = torch.randn(rows + padding, dim, generator=draw) * (self.rows > 0)[:, None]

    def defined(self) -> tuple[Tensor, Tensor]:
        weight, accumulator = self.weight.double(), self.accumulator.double()
        for row, g in zip(self.rows.tolist(), self.gradient.double(), strict=True):
            if row:
                accumulator[row] += g.square().sum() / len(g)
                weight[row] -= LR * g / (accumulator[row].sqrt() + EPS)
        return weight, accumulator

    def updated(self, name: str, skip: float | None = None, gradient: Tensor | None = None) -> tuple[Tensor, Tensor]:
        module, device = IMPLEMENTATIONS[name]
        weight, accumulator = self.weight.to(device, copy=True), self.accumulator.to(device, copy=True)
        gradient = (self.gradient if gradient is None else gradient).to(device)
        flag = None if skip is None else torch.tensor(skip, device=device)
        module.rowwise_adagrad(weight, accumulator, self.rows.to(device), gradient, lr=LR, eps=EPS, skip=flag)
        return weight.cpu(), accumulator.cpu()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("skip", [None, 0.0])
@pytest.mark.parametrize("dim", [1, 20, 64, 301, 5000])
@pytest.mark.parametrize("rows", [0, 1, 17, 69])
def test_rows_move_as_defined_and_all_others_stay(name, rows, dim, skip):
    case = Case(rows, dim)
    weight, accumulator = case.updated(name, skip)
    exact_weight, exact_accumulator = case.defined()
    torch.testing.assert_close(weight.double(), exact_weight, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(accumulator.double(), exact_accumulator, rtol=1e-6, atol=1e-7)
    others = torch.ones(len(weight), dtype=torch.bool)
    others[case.rows[case.rows > 0]] = False
    assert torch.equal(weight[others], case.weight[others])
    assert torch.equal(accumulator[others], case.accumulator[others])


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("skip", [1.0, -2.0, float("inf"), float("nan")])
def test_nothing_moves_where_it_is_to_skip_not_even_by_a_broken_gradient(name, skip):
    case = Case(30, 20)
    for gradient in (case.gradient, torch.full_like(case.gradient, torch.nan), case.gradient * torch.inf):
        weight, accumulator = case.updated(name, skip, gradient)
        assert torch.equal(weight, case.weight)
        assert torch.equal(accumulator, case.accumulator)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_no_rows_at_all(name):
    weight, accumulator = (case := Case(0, 20, padding=0)).updated(name)
    assert torch.equal(weight, case.weight)
    assert torch.equal(accumulator, case.accumulator)


def test_the_plain_one_needs_nothing_that_only_the_device_knows():
    weight, accumulator, gradient = (torch.zeros(*shape, device="meta") for shape in ((9, 4), (9,), (5, 4)))
    rows, skip = torch.zeros(5, dtype=torch.int64, device="meta"), torch.zeros((), device="meta")
    reference.rowwise_adagrad(weight, accumulator, rows, gradient, lr=LR, eps=EPS, skip=skip)


def test_a_table_that_cannot_be_updated_where_it_is_is_refused():
    case = Case(3, 8)
    weight = case.weight.to(DEVICE).t().contiguous().t()
    with pytest.raises(ValueError, match="must be contiguous"):
        optimizer.rowwise_adagrad(weight, case.accumulator, case.rows, case.gradient, lr=LR, eps=EPS)


def test_the_operator_takes_triton_where_it_may_and_plain_torch_elsewhere(monkeypatch):
    case = Case(30, 20)
    tensors = [tensor.to(DEVICE, copy=True) for tensor in (case.weight, case.accumulator, case.rows, case.gradient)]
    expected = case.updated("triton")
    ops.use("triton")
    with monkeypatch.context() as patch:
        patch.delattr(reference, "rowwise_adagrad")
        ops.rowwise_adagrad(*tensors, lr=LR, eps=EPS)
    assert torch.equal(tensors[0].cpu(), expected[0])
    assert torch.equal(tensors[1].cpu(), expected[1])
    ops.use("reference")
    weight, accumulator = case.weight.double(), case.accumulator.double()
    ops.rowwise_adagrad(weight, accumulator, case.rows, case.gradient.double(), lr=LR, eps=EPS)
    torch.testing.assert_close((weight, accumulator), case.defined(), rtol=1e-12, atol=1e-12)
