"""The plays that contribute most to songs: the C++ kernel against plain torch, and plain torch against a loop."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fuxi_beta.ops import Term, contributions, cpu, strongest_plays, use, why_no_cpu_kernels

needs_kernels = pytest.mark.skipif(bool(why_no_cpu_kernels()), reason=f"no C++ kernels: {why_no_cpu_kernels()}")
SHAPES = [
    pytest.param([5, 0, 1, 70, 3, 200, 64, 2], 30, [64, 64], id="ragged"),
    pytest.param([3, 1000], 33, [7, 33, 16], id="a term more, and songs of two blocks"),
    pytest.param([12, 13, 24, 25, 36], 1, [1], id="one song and one channel"),
    pytest.param([1] * 50, 100, [20], id="one play each"),
]


def ragged(lengths: Sequence[int], songs: int, widths: Sequence[int]) -> tuple[list[Term], Tensor, Tensor, Tensor]:
    """Terms, offsets, songs that often repeat, and the listeners with plays, in another order."""
    torch.manual_seed(len(lengths))
    tokens, rows = sum(lengths), torch.tensor(lengths).nonzero().squeeze(1).flip(0)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    terms = [
        Term(torch.randn(tokens, dim), torch.randn(len(rows), songs, dim), torch.randn(tokens) if number else None)
        for number, dim in enumerate(widths)
    ]
    return terms, offsets, torch.randint(1, 40, (tokens,)) * 1_000_003, rows


def in_double(terms: Sequence[Term], sign: float = 1.0) -> list[Term]:
    factors = (None if term.factor is None else term.factor.double() for term in terms)
    return [Term(t.vector.double(), sign * t.towards.double(), f) for t, f in zip(terms, factors, strict=True)]


@needs_kernels
@pytest.mark.parametrize(("lengths", "songs", "widths"), SHAPES)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_kernel_equals_plain_torch(lengths, songs, widths, count):
    terms, offsets, items, rows = ragged(lengths, songs, widths)
    tokens, weight = cpu.strongest_plays(terms, offsets, items, rows, count)
    expected = contributions.strongest_plays(in_double(terms), offsets, items, rows, count)
    torch.testing.assert_close(weight.double(), expected[1], rtol=1e-5, atol=1e-4)
    assert (tokens == expected[0]).double().mean() > 0.999, "but for neighbours of almost equal weight"
    assert bool(((tokens >= 0) == (weight > 0)).all())


@needs_kernels
@pytest.mark.parametrize(("lengths", "songs", "widths"), SHAPES)
def test_all_parts_sum_to_the_whole(lengths, songs, widths):
    """All positive ones, and all negative ones as the positive ones of the opposite, are the score of the sum."""
    terms, offsets, items, rows = ragged(lengths, songs, widths)
    terms = [replace(term, towards=term.towards / (100 * term.towards.shape[2])) for term in terms]
    opposite = [replace(term, towards=-term.towards) for term in terms]
    found = [cpu.strongest_plays(some, offsets, items, rows, max(lengths))[1] for some in (terms, opposite)]
    _, weight = contributions.contributed(in_double(terms), offsets, rows)
    whole = weight.sum(1)
    assert whole.abs().max() > 0.001
    torch.testing.assert_close((found[0].sum(2) - found[1].sum(2)).double(), whole, rtol=0, atol=1e-5)


@needs_kernels
def test_any_number_of_threads_gives_the_same_bits():
    terms, offsets, items, rows = ragged([40, 3, 77, 0, 9] * 20, 30, [16, 16])
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            found.append(cpu.strongest_plays(terms, offsets, items, rows, 3))
    finally:
        torch.set_num_threads(threads)
    for tokens, weight in found[1:]:
        assert torch.equal(tokens, found[0][0]) and torch.equal(weight, found[0][1])


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_by_hand(kernels):
    """Two listeners: the second played song 5 twice, and its two plays count as one, named by the newest."""
    vector = torch.tensor([[1.0], [2.0], [3.0], [-1.0], [4.0]])
    terms = [
        Term(vector, torch.tensor([[[1.0], [-1.0]], [[1.0], [-1.0]]])),
        Term(vector, torch.zeros(2, 2, 1), vector[:, 0]),
    ]
    offsets, items, rows = torch.tensor([0, 2, 5]), torch.tensor([5, 6, 5, 6, 5]), torch.tensor([0, 1])
    use(kernels)
    try:
        tokens, weight = strongest_plays(terms, offsets, items, rows, 2)
    finally:
        use("auto")
    assert tokens.tolist() == [[[1, 0], [-1, -1]], [[4, -1], [3, -1]]]
    assert weight.tolist() == [[[2.0, 1.0], [0.0, 0.0]], [[7.0, 0.0], [1.0, 0.0]]]


def test_no_listener_and_no_song():
    for rows, songs in ((torch.zeros(0, dtype=torch.int64), 3), (torch.tensor([0]), 0)):
        terms = [Term(torch.ones(2, 4), torch.ones(len(rows), songs, 4))]
        tokens, weight = strongest_plays(terms, torch.tensor([0, 2]), torch.tensor([1, 2]), rows, 2)
        assert tokens.shape == weight.shape == (len(rows), songs, 2)
