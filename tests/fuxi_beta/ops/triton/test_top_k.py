"""Fused top-k against the plain one, which must give the same items and the same scores to the bit.

In Triton's interpreter where there is no GPU, as a GPU computes (`as_hardware`); compiled where there is one.
"""

import pytest
import torch
from torch import Tensor

from fuxi_beta import ops
from fuxi_beta.models.base import l2_normalise
from fuxi_beta.ops import TopKSearch
from fuxi_beta.ops.top_k import blocked_top_k
from fuxi_beta.ops.triton import top_k as fused
from fuxi_beta.ops.triton import tuning

DEVICE = "cpu" if tuning.INTERPRETED else "cuda"
HALVES = [torch.float16, torch.bfloat16]
SCORING = [torch.float32, *HALVES]

Seen = tuple[Tensor, Tensor] | None


def units(rows: int, dim: int = 16) -> Tensor:
    return l2_normalise(torch.randn(rows, dim)).to(DEVICE)


def some(rows: int, share: float = 0.8) -> Tensor:
    return (torch.rand(rows) < share).to(DEVICE)


def pairs(*heard: Tensor) -> tuple[Tensor, Tensor]:
    listener = torch.cat([torch.full((len(items),), row) for row, items in enumerate(heard)])
    return listener.to(DEVICE), torch.cat(heard).to(DEVICE)


def check(
    queries: Tensor,
    table: Tensor,
    candidates: Tensor,
    k: int,
    seen: Seen = None,
    scoring: torch.dtype = torch.float16,
    splits: int | None = None,
) -> fused.Lists:
    """Equal to the plain path, whose float64 scores are rounded to fp32 before they are ranked."""
    found = fused.search(queries, fused.prepare(table, candidates, scoring=scoring), k=k, seen=seen, splits=splits)
    items, scores = blocked_top_k(queries.double(), table, candidates=candidates, k=k, seen=seen)
    assert torch.equal(found.items, items)
    assert torch.equal(found.scores, scores)
    return found


@pytest.mark.parametrize("scoring", SCORING)
@pytest.mark.parametrize(("k", "splits"), [(1, 1), (5, 3), (30, 2)])
def test_unit_vectors(k, splits, scoring):
    torch.manual_seed(k)
    queries, table, candidates = units(20), units(333), some(333)
    table[200:210] = table[100]  # equal songs, of which the lower number goes first
    heard = [torch.randint(333, (count % 40,)) for count in range(20)]
    assert check(queries, table, candidates, k, scoring=scoring, splits=splits).unproved < 20
    found = check(queries, table, candidates, k, seen=pairs(*heard), scoring=scoring, splits=splits)
    plain = TopKSearch(table, candidates).top_k(queries, k=k, seen=pairs(*heard))
    assert torch.equal(found.items, plain[0])  # float32 agrees where scores are apart or equal
    torch.testing.assert_close(found.scores, plain[1])


@pytest.mark.parametrize("scoring", SCORING)
def test_small_integers_tie_everywhere(scoring):
    """Every implementation gets these scores exactly, so float32 must agree to the bit as well."""
    torch.manual_seed(1)
    queries, table = (torch.randint(-2, 3, (rows, 16)).float().to(DEVICE) for rows in (7, 150))
    candidates = some(150)
    heard = pairs(*(torch.randint(1, 150, (count,)) for count in (0, 3, 30, 149, 10, 200, 1)))
    for k in (1, 4, 20):
        found = check(queries, table, candidates, k, seen=heard, scoring=scoring)
        plain = TopKSearch(table, candidates).top_k(queries, k=k, seen=heard)
        assert torch.equal(found.items, plain[0])
        assert torch.equal(found.scores, plain[1])


@pytest.mark.parametrize("count", [0, 1, 7, 30, 64, 65])
def test_fewer_candidates_than_places(count):
    torch.manual_seed(2)
    candidates = torch.zeros(100, dtype=torch.bool, device=DEVICE)
    candidates[torch.randperm(99)[:count] + 1] = True
    found = check(units(3), units(100), candidates, 30)
    assert found.unproved == 0
    assert (found.items > 0).sum(1).tolist() == [min(count, 30)] * 3


def test_no_listeners():
    found = check(units(0), units(50), some(50), 5)
    assert found.items.shape == found.scores.shape == (0, 5)


@pytest.mark.parametrize("dim", [5, 48, 80])
def test_widths_that_are_no_whole_tiles(dim):
    torch.manual_seed(dim)
    assert check(units(4, dim), units(130, dim), some(130), 10, splits=2).unproved == 0


@pytest.mark.parametrize(("k", "listeners"), [(10, 70), (128, 20)])
def test_every_choice_of_tiles(k, listeners, take_choice):
    torch.manual_seed(k)
    queries, table, candidates = units(listeners), units(200), some(200)
    heard = pairs(*(torch.randint(200, (count % 40,)) for count in range(listeners)))
    for choice in range(len(fused._choices(max(tuning.power_of_two(2 * k), 16)))):
        take_choice(choice)
        check(queries, table, candidates, k, seen=heard, splits=2)


def test_heard_songs_may_be_unknown_repeated_all_of_them_or_the_best():
    torch.manual_seed(3)
    queries, table, candidates = units(5), units(200), some(200)
    best = blocked_top_k(queries[2:3].double(), table, candidates=candidates, k=100)[0][0].cpu()
    heard = pairs(torch.tensor([3, 3, 3, 900]), torch.arange(200), best, torch.arange(0), torch.tensor([31, 32, 63]))
    found = check(queries, table, candidates, 10, seen=heard)
    assert not found.items[1].any()
    assert not set(found.items[2].tolist()) & set(best.tolist())


def test_listeners_in_portions_get_the_same_lists(monkeypatch):
    torch.manual_seed(4)
    queries, table, candidates = units(23), units(120), some(120)
    table[60:] = table[:60]  # all songs twice, so that some lists end between two equals
    heard = pairs(*(torch.randint(120, (6,)) for _ in range(23)))
    catalogue = fused.prepare(table, candidates)
    whole = fused.search(queries, catalogue, k=9, seen=heard)
    monkeypatch.setattr(fused, "_HEARD_BYTES", 4 * 4 * 5)
    monkeypatch.setattr(fused, "_LISTENERS", 7)
    monkeypatch.setattr(fused, "_UNPROVED_LISTENERS", 2)
    assert torch.equal(check(queries, table, candidates, 9, seen=heard).items, whole.items)
    check(queries, table, candidates, 9)


def test_bits_of_heard_songs_stay_within_their_listeners():
    places = torch.full((600,), 77, dtype=torch.int32, device=DEVICE)  # what lies behind a catalogue of 100 songs
    places[:100] = torch.arange(100)
    listener, song = pairs(*(torch.tensor([0, row, row, 63, 99, 100, 500]) for row in range(12)))
    around = torch.zeros(12, 4, dtype=torch.int32, device=DEVICE)
    fused._mark_heard[(1,)](
        listener, song, places[:100], around[4:9], len(song), 4, 5, 100, 4, BLOCK=tuning.power_of_two(len(song))
    )
    bits = around[:, :, None] >> torch.arange(32, device=DEVICE, dtype=torch.int32) & 1
    marked = {(row, place) for row, place in bits.flatten(1).nonzero().tolist()}
    assert marked == {(row, place) for row in range(4, 9) for place in (0, row, 63, 99)}


@pytest.mark.parametrize("scoring", HALVES)
def test_where_rounded_scores_are_wrong_the_proof_fails_and_the_list_is_right(scoring):
    """Ninety songs closer together than half precision can tell, some others far away."""
    torch.manual_seed(5)
    queries, table = units(6), units(160)
    candidates = torch.ones(160, dtype=torch.bool, device=DEVICE)
    table[:90] = l2_normalise(table[0] + 3e-5 * torch.randn(90, 16).to(DEVICE))
    queries[:3] = l2_normalise(table[0] + 0.1 * queries[:3])
    found = check(queries, table, candidates, 20, scoring=scoring)
    rounded = (queries.to(scoring).double() @ table.to(scoring).double().t()).topk(20).indices
    wrong = [set(mine) != set(right) for mine, right in zip(rounded.tolist(), found.items.tolist(), strict=True)]
    assert all(wrong[:3])
    assert 3 <= found.unproved < 6


def test_more_equal_songs_than_a_shortlist_holds():
    torch.manual_seed(6)
    table = units(1).expand(80, 16).contiguous()
    found = check(units(4), table, torch.ones(80, dtype=torch.bool, device=DEVICE), 8)
    assert found.unproved == 4
    assert found.items[0].tolist() == list(range(8))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in which the interpreter computes
def test_vectors_that_half_precision_cannot_hold():
    torch.manual_seed(7)
    queries, table, candidates = units(5), units(150) * 1e-3, some(150)
    queries[0] *= 1e6  # infinite in fp16
    queries[1] *= 1e-12  # zero
    assert 1 <= check(queries, table, candidates, 10).unproved <= 2
    table[candidates.nonzero()[0]] *= 1e9
    assert check(queries, table, candidates, 10).unproved == 5


def test_a_score_that_is_not_a_number_is_refused():
    queries, table = units(2), units(40)
    queries[1, 3] = torch.nan
    with pytest.raises(ValueError, match="not a number"):
        fused.search(queries, fused.prepare(table, some(40)), k=3)


@pytest.mark.parametrize("scoring", SCORING)
def test_no_score_is_off_by_more_than_the_bound(scoring):
    torch.manual_seed(8)
    for scale in (1e-4, 1.0, 50.0):
        queries, table = torch.randn(30, 48).to(DEVICE) * scale, units(60, 48) / scale
        error, bound = errors(queries, table, scoring)
        assert (error <= bound).all()
        assert (bound < 0.006 * queries.norm(dim=1).max() / scale).all()


def test_the_bound_is_reached():
    """1 + 2^-11 lies between two half-precision numbers and 1 is one, so a row of it is off by 2^-11 everywhere."""
    queries, table = torch.ones(1, 16, device=DEVICE), torch.full((1, 16), 1 + 2.0**-11, device=DEVICE)
    error, bound = errors(queries, table, torch.float16)
    assert error.item() == 16 * 2.0**-11
    assert error.item() < bound.item() < 1.02 * error.item()


def errors(queries: Tensor, table: Tensor, scoring: torch.dtype) -> tuple[Tensor, Tensor]:
    """The largest error of each query's rounded scores, and its bound. [B] twice."""
    catalogue = fused.prepare(table, torch.ones(len(table), dtype=torch.bool, device=DEVICE), scoring=scoring)
    rounded, norms, lost = fused._round(queries, None, scoring)
    width = queries.shape[1]
    assert torch.equal(rounded[:, :width], queries.to(scoring))
    assert not rounded[:, width:].any()
    scores, column = fused._shortlists(rounded, catalogue, None, 30, None)
    exact = (queries.double() @ table.double().t()).gather(1, column.clamp(min=0).long()).float().double()
    error = (scores.double() - exact).masked_fill(column < 0, 0).abs().amax(1)
    return error, fused._largest_error(norms, lost, catalogue)


def test_what_it_is_made_for():
    assert fused.takes(units(2), units(3), 30)
    assert not fused.takes(units(2).double(), units(3).double(), 30)
    assert not fused.takes(units(2), units(3), fused.LONGEST + 1)


def test_the_dispatch_takes_it_where_triton_runs(monkeypatch):
    torch.manual_seed(9)
    queries, table, candidates = units(3), units(60), some(60)
    called, prepare = [], fused.prepare
    monkeypatch.setattr(fused, "prepare", lambda *inputs: called.append(1) or prepare(*inputs))
    try:
        ops.use("triton")
        searcher = TopKSearch(table, candidates)
        fast, again = searcher.top_k(queries, k=5), searcher.top_k(queries, k=5)
        assert called == [1]
        ops.use("reference")
        plain = TopKSearch(table, candidates).top_k(queries, k=5)
        assert called == [1]
    finally:
        ops.use("auto")
    assert torch.equal(fast[0], again[0]) and torch.equal(fast[0], plain[0])
