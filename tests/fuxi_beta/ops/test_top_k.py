"""Top-k against sorting everything."""

import pytest
import torch

from fuxi_beta.ops import TopKSearch, top_k_of_scores


def brute_force(scores: torch.Tensor, candidates: torch.Tensor, seen: list[set[int]], k: int):
    lists = []
    for row, heard in zip(scores.tolist(), seen, strict=True):
        allowed = [item for item in range(len(row)) if candidates[item] and item not in heard]
        best = sorted(allowed, key=lambda item: (-row[item], item))[:k]
        lists.append((best, [row[item] for item in best]))
    return lists


@pytest.mark.parametrize("block", [1, 7, 64, 10_000])
@pytest.mark.parametrize("k", [1, 5, 80])
def test_equals_sorting_with_ties_seen_songs_and_lists_longer_than_the_catalogue(block, k):
    torch.manual_seed(0)
    table = torch.randint(-2, 3, (90, 4)).float()  # small integers: many exact ties, zeros and negatives
    queries = torch.randint(-2, 3, (6, 4)).float()
    candidates = torch.rand(90) < 0.8
    candidates[0] = False
    seen_rows = [set(torch.randint(1, 90, (count,)).tolist()) for count in (0, 3, 30, 89, 10, 200)]
    pairs = [(row, item) for row, items in enumerate(seen_rows) for item in sorted(items)] + [(1, 95)]
    seen = (torch.tensor([row for row, _ in pairs]), torch.tensor([item for _, item in pairs]))

    items, scores = TopKSearch(table, candidates).top_k(queries, k=k, seen=seen, block=block)
    of_scores = top_k_of_scores(queries @ table.t(), candidates=candidates, k=k, seen=seen, block=block)
    assert torch.equal(items, of_scores[0])
    assert items.shape == scores.shape == (6, k)
    for row, (best, values) in enumerate(brute_force(queries @ table.t(), candidates, seen_rows, k)):
        assert items[row].tolist() == best + [0] * (k - len(best))
        assert scores[row].tolist() == values + [-torch.inf] * (k - len(best))


def test_real_valued_scores_come_back_exactly():
    torch.manual_seed(1)
    scores = torch.randn(3, 500) * torch.logspace(-20, 20, 500)
    items, found = top_k_of_scores(scores, candidates=torch.ones(500, dtype=torch.bool), k=500, block=100)
    assert torch.equal(found, scores.sort(dim=1, descending=True).values)
    assert torch.equal(scores.gather(1, items), found)


def test_no_candidates_give_empty_lists():
    items, scores = TopKSearch(torch.ones(5, 3), torch.zeros(5, dtype=torch.bool)).top_k(torch.ones(2, 3), k=4)
    assert not items.any()
    assert torch.isneginf(scores).all()


def test_a_score_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="not a number"):
        TopKSearch(torch.ones(3, 2), torch.ones(3, dtype=torch.bool)).top_k(torch.full((1, 2), torch.nan), k=1)
