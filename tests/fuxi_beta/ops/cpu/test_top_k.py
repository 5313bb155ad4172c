"""Fused top-k on the CPU against sorting all scores: the same lists to the bit, by every scan."""

import pytest
import torch
from torch import Tensor

from fuxi_beta import ops
from fuxi_beta.models.base import l2_normalise
from fuxi_beta.ops import TopKSearch, top_k_of_scores
from fuxi_beta.ops.cpu import top_k as fused
from fuxi_beta.ops.top_k import blocked_top_k

pytestmark = pytest.mark.skipif(bool(ops.why_no_cpu_kernels()), reason=f"no C++ kernels: {ops.why_no_cpu_kernels()}")

Seen = tuple[Tensor, Tensor] | None
SCANS = pytest.mark.parametrize("scan", [] if ops.why_no_cpu_kernels() else fused.scans())


@pytest.fixture(autouse=True)
def _as_it_was():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    ops.use("auto")


def pairs(*heard: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([torch.full((len(items),), row) for row, items in enumerate(heard)]), torch.cat(heard)


def all_scores(queries: Tensor, table: Tensor) -> Tensor:
    """Each pair's fp32 score, from lists of everything. [B, V]"""
    everything = fused.prepare(table, torch.ones(len(table)) > 0, scan="fp32")
    found = fused.search(queries, everything, k=len(table))
    return torch.empty_like(found.scores).scatter_(1, found.items, found.scores)


def sorted_lists(scores: Tensor, candidates: Tensor, k: int, seen: Seen) -> tuple[Tensor, Tensor]:
    """The definition: sort all scores, the lower index first among equals."""
    allowed = candidates.expand(scores.shape).clone()
    if seen is not None:
        known = seen[1] < scores.shape[1]
        allowed[seen[0][known], seen[1][known]] = False
    items, best = torch.zeros(len(scores), k, dtype=torch.int64), torch.full((len(scores), k), -torch.inf)
    for row in range(len(scores)):
        songs = allowed[row].nonzero().squeeze(1)
        order = songs[scores[row, songs].argsort(descending=True, stable=True)][:k]
        items[row, : len(order)], best[row, : len(order)] = order, scores[row, order]
    return items, best


def check(queries: Tensor, table: Tensor, candidates: Tensor, k: int, *, scan: str, seen: Seen = None) -> int:
    """The lists are those of all scores, and these are float64's within fp32 accumulation. Returns the unproved."""
    scores = all_scores(queries, table)
    exact = queries.double() @ table.double().t()
    bound = (table.shape[1] / 8 + 8) * 2.0**-24 * queries.double().abs() @ table.double().abs().t() + 1e-37
    assert ((scores.double() - exact).abs() <= bound).all()
    items, best = sorted_lists(scores, candidates, k, seen)
    catalogue = fused.prepare(table, candidates, scan=scan)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found = fused.search(queries, catalogue, k=k, seen=seen)
        assert torch.equal(found.items, items)
        assert torch.equal(found.scores, best)
    return found.unproved


def units(rows: int, dim: int) -> Tensor:
    return l2_normalise(torch.randn(rows, dim))


def near_ties(rows: int, dim: int) -> Tensor:
    """One vector, of which each row has other last bits."""
    bits = units(1, dim).expand(rows, -1).contiguous().view(torch.int32)
    return (bits + torch.randint(-2, 3, (rows, dim), dtype=torch.int32)).view(torch.float32)


def twice(rows: int, dim: int) -> Tensor:
    return units(rows // 2 + 1, dim).repeat(2, 1)[:rows]


def signed_zeros(rows: int, dim: int) -> Tensor:
    return torch.where(torch.rand(rows, dim) < 0.5, -0.0, 0.0) * torch.ones(rows, dim)


def clusters(rows: int, dim: int) -> Tensor:
    return l2_normalise(units(5, dim)[torch.randint(5, (rows,))] + 0.01 * torch.randn(rows, dim))


TABLES = {
    "unit vectors": units,
    "small integers": lambda rows, dim: torch.randint(-2, 3, (rows, dim)).float(),
    "every vector twice": twice,
    "all equal": lambda rows, dim: torch.full((rows, dim), 0.1),
    "zeros and minus zeros": signed_zeros,
    "last bits differ": near_ties,
    "clusters": clusters,
    "norms from 1e-14 to 1e14": lambda rows, dim: torch.randn(rows, dim) * torch.logspace(-14, 14, rows)[:, None],
    "numbers that bf16 instructions take for 0": lambda rows, dim: torch.randn(rows, dim) * 1e-39,
    "products underflow": lambda rows, dim: torch.randn(rows, dim) * 1e-25,
}


@SCANS
@pytest.mark.parametrize("k", [1, 30, 1000])
@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
def test_lists_are_those_of_all_scores(make, k, scan):
    torch.manual_seed(k)
    table, candidates = make(700, 19), torch.rand(700) < 0.8
    queries = torch.cat([units(37, 19), make(30, 19), torch.zeros(1, 19)])
    heard = pairs(*(torch.randint(700, (row * 9 % 80,)) for row in range(68)))
    assert check(queries, table, candidates, k, scan=scan, seen=heard) == 0


@SCANS
@pytest.mark.parametrize("dim", [1, 3, 7, 63, 64, 65, 130])
def test_any_width(dim, scan):
    torch.manual_seed(dim)
    check(units(5, dim), units(300, dim), torch.rand(300) < 0.8, 10, scan=scan)


@SCANS
@pytest.mark.parametrize("count", [1, 2, 29, 30, 31])
def test_few_candidates(count, scan):
    torch.manual_seed(count)
    candidates = torch.zeros(200, dtype=torch.bool)
    candidates[torch.randperm(200)[:count]] = True
    check(units(3, 8), units(200, 8), candidates, 30, scan=scan)


@SCANS
@pytest.mark.parametrize("listeners", [1, 64, 65, 700])
def test_many_tiles_and_blocks_of_a_catalogue_sorted_by_score(listeners, scan):
    """Against float64, whose lists are the same where scores are apart."""
    torch.manual_seed(listeners)
    queries, table = torch.rand(listeners, 24) + 0.1, torch.rand(9000, 24) + 0.1
    table = table[table.sum(1).argsort()]
    heard = pairs(*(torch.randint(9000, (53,)) for _ in range(listeners)))
    items, scores = blocked_top_k(queries.double(), table, candidates=torch.ones(9000) > 0, k=30, seen=heard)
    catalogue = fused.prepare(table, torch.ones(9000) > 0, scan=scan)
    found, alone = fused.search(queries, catalogue, k=30, seen=heard), fused.search(queries[:1], catalogue, k=30)
    torch.testing.assert_close(found.scores, scores, rtol=1e-6, atol=0)
    assert (found.items == items).float().mean() > 0.999  # rounded otherwise, neighbours may change places
    torch.set_num_threads(1)
    again = fused.search(queries, catalogue, k=30, seen=heard)
    assert torch.equal(again.items, found.items)
    assert torch.equal(again.scores, found.scores)
    common = torch.isin(alone.items[0], found.items[0])
    assert torch.isin(alone.scores[0][common], found.scores[0]).all()  # a score does not depend on the batch


@SCANS
def test_heard_songs_may_be_everything_unknown_repeated_unsorted_or_no_candidates(scan):
    torch.manual_seed(3)
    table, candidates = units(200, 16), torch.arange(200) % 3 > 0
    nothing, best = torch.zeros(0, dtype=torch.int64), all_scores(units(1, 16), table)[0].argsort(descending=True)
    heard = pairs(
        torch.tensor([7, 2**40, 5, 7, 7, 200]), torch.arange(200), nothing, torch.arange(0, 200, 3), best[:90]
    )
    shuffled = torch.randperm(len(heard[0]))
    check(units(5, 16), table, candidates, 20, scan=scan, seen=(heard[0][shuffled], heard[1][shuffled]))


@SCANS
def test_what_no_shortlist_can_hold_is_scored_exactly(scan):
    """More equal songs than a shortlist holds, and products beyond what sums in fp32 can hold."""
    table = torch.ones(20_000, 3)
    table[123], table[150] = 2.0, 0.5
    catalogue = fused.prepare(table, torch.ones(20_000) > 0, scan=scan)
    found = fused.search(
        torch.tensor([[1.0, 1, 1], [-1, -1, -1], [0, 0, 0]]), catalogue, k=4, seen=pairs(torch.arange(1))
    )
    assert found.unproved == 3
    assert found.items.tolist() == [[123, 1, 2, 3], [150, 0, 1, 2], [0, 1, 2, 3]]
    table = torch.randn(300, 5) * 1e18
    assert check(torch.randn(9, 5) * 1e18, table, torch.ones(300) > 0, 9, scan=scan) == 9


@SCANS
def test_infinite_scores_rank_first_and_last(scan):
    table = torch.tensor([[1.0, 1], [2, -1], [3, 1], [torch.inf, 1], [-torch.inf, 1]])
    found = fused.search(torch.tensor([[1.0, 1]]), fused.prepare(table, torch.ones(5) > 0, scan=scan), k=6)
    assert found.items.tolist() == [[3, 2, 0, 1, 4, 0]]
    assert found.scores.tolist() == [[torch.inf, 4, 2, 1, -torch.inf, -torch.inf]]
    found = fused.search(torch.tensor([[torch.inf, 1]]), fused.prepare(table, torch.arange(5) < 3, scan=scan), k=2)
    assert found.items.tolist() == [[0, 1]]


@SCANS
@pytest.mark.parametrize("bad", ["query", "table", "infinity times zero"])
def test_a_score_that_is_not_a_number_is_refused_even_if_it_was_heard(bad, scan):
    queries, table, candidates = torch.ones(3, 4), torch.zeros(3000, 4), torch.arange(3000) > 0
    (queries if bad == "query" else table)[1, 2] = torch.inf if bad == "infinity times zero" else torch.nan
    queries[2, 2] = 0.0
    with pytest.raises(ValueError, match="a score is not a number: the model or its item table is broken"):
        fused.search(queries, fused.prepare(table, candidates, scan=scan), k=1, seen=pairs(*[torch.arange(2)] * 3))
    if bad != "query":  # no candidate, no score
        found = fused.search(queries, fused.prepare(table, torch.arange(3000) > 1, scan=scan), k=1)
        assert found.items.tolist() == [[2]] * 3


@SCANS
def test_no_listeners_and_no_candidates(scan):
    nobody = fused.search(units(0, 6), fused.prepare(units(9, 6), torch.ones(9) > 0, scan=scan), k=3)
    assert nobody.items.shape == nobody.scores.shape == (0, 3)
    nothing = fused.search(units(2, 6), fused.prepare(units(9, 6), torch.zeros(9) > 0, scan=scan), k=3)
    assert nothing.items.tolist() == [[0] * 3] * 2
    assert torch.isneginf(nothing.scores).all()


def test_a_listener_who_does_not_exist_is_refused():
    seen = (torch.tensor([2]), torch.tensor([1]))
    with pytest.raises(IndexError, match="seen names listener 2 of 2"):
        fused.search(units(2, 6), fused.prepare(units(9, 6), torch.ones(9) > 0), k=3, seen=seen)


def test_the_operator_prepares_once_and_can_be_forced_to_plain_torch():
    torch.manual_seed(5)
    queries, table, candidates = units(4, 12).requires_grad_(), units(90, 12), torch.rand(90) < 0.8
    search = TopKSearch(table, candidates)
    items, scores = search.top_k(queries, k=5)
    kept = dict(search._catalogues)
    assert [type(catalogue) for catalogue in kept.values()] == [fused.Catalogue]
    assert torch.equal(search.top_k(queries, k=5)[0], items)
    assert search._catalogues == kept
    ops.use("reference")
    plain = TopKSearch(table, candidates)
    assert torch.equal(plain.top_k(queries, k=5)[0], items)
    torch.testing.assert_close(plain.top_k(queries, k=5)[1], scores)
    assert not plain._catalogues


def test_what_it_does_not_take_is_searched_in_plain_torch():
    table = units(90, 12)
    assert fused.takes(table, table, 1)
    assert not fused.takes(table.double(), table.double(), 1)
    assert not fused.takes(table, table, 0)
    search = TopKSearch(table.double(), torch.ones(90) > 0)
    assert search.top_k(table.double()[:7], k=1)[0].squeeze(1).tolist() == list(range(7))
    assert not search._catalogues


@pytest.mark.parametrize("k", [1, 10, 700])
@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
def test_lists_of_given_scores_are_those_of_plain_torch(make, k):
    torch.manual_seed(k)
    scores, candidates = make(9, 600), torch.rand(600) < 0.8
    scores[0, ::7], scores[1, ::7] = torch.inf, -torch.inf
    scores[:, ~candidates] = torch.nan
    heard = pairs(*(torch.randint(650, (row * 70,)) for row in range(9)))
    shuffled = torch.randperm(len(heard[0]))
    arguments = {"candidates": candidates, "k": k, "seen": (heard[0][shuffled], heard[1][shuffled])}
    views = [scores, scores.t().contiguous().t(), scores[:1].expand(9, -1)]
    for view in views:
        ops.use("reference")
        expected = top_k_of_scores(view, **arguments)
        ops.use("auto")
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, top_k_of_scores(view, **arguments), expected))


def test_a_given_score_that_is_not_a_number_is_refused():
    for place in (0, 300, 599):
        scores = torch.arange(600.0).repeat(3, 1)
        scores[1, place] = torch.nan
        with pytest.raises(ValueError, match="a score is not a number"):
            top_k_of_scores(scores, candidates=torch.ones(600) > 0, k=3, seen=pairs(torch.arange(600)))
