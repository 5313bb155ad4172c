"""Ranking metrics on hand-worked lists."""

import dataclasses
import math

import numpy as np

from fuxi_beta.evaluation.metrics import METRICS, RankedLists, list_metrics, metric_of, metric_order, rank_metrics


def lists(hits: np.ndarray, relevant: np.ndarray, heard: np.ndarray | None = None) -> RankedLists:
    """Lists of the songs 1..K."""
    items = np.tile(np.arange(1, hits.shape[1] + 1), (len(hits), 1))
    return RankedLists(items, hits, relevant, np.zeros_like(hits) if heard is None else heard)


def test_list_metrics_by_hand():
    hits = np.array([[False, True, False, True], [False, False, False, False], [True, True, False, False]])
    metrics = list_metrics(lists(hits, np.array([3, 1, 2])), at=(2, 4))
    np.testing.assert_allclose(metrics["hr_2"], [1, 0, 1])
    np.testing.assert_allclose(metrics["recall_2"], [1 / 3, 0, 1])
    np.testing.assert_allclose(metrics["recall_4"], [2 / 3, 0, 1])
    second, fourth = 1 / math.log2(3), 1 / math.log2(5)
    np.testing.assert_allclose(metrics["ndcg_2"], [second / (1 + second), 0, 1])
    np.testing.assert_allclose(metrics["ndcg_4"], [(second + fourth) / (1 + second + 0.5), 0, 1])


def test_lists_shorter_than_the_cut_off_count_what_they_have():
    metrics = list_metrics(lists(np.array([[True, False]]), np.array([2])), at=(5,))
    np.testing.assert_allclose(metrics["recall_5"], [0.5])
    np.testing.assert_allclose(metrics["ndcg_5"], [1 / (1 + 1 / math.log2(3))])


def test_rank_metrics_by_hand_with_halves_between_ties():
    metrics = rank_metrics(np.array([1.0, 2.5, 10.0, 10.5, 2500.0, 2600.0]), at=(10,))
    np.testing.assert_allclose(metrics["hr_10"], [1, 1, 1, 0, 0, 0])
    np.testing.assert_allclose(metrics["ndcg_10"], [1, 1 / math.log2(3.5), 1 / math.log2(11), 0, 0, 0])
    np.testing.assert_allclose(metrics["mrr"], [1, 0.4, 0.1, 1 / 10.5, 1 / 2500, 1 / 2501])


def test_repeats_are_a_share_of_what_is_listed():
    hits, heard = np.zeros((2, 4), bool), np.array([[True, False, True, False], [False] * 4])
    found = dataclasses.replace(lists(hits, np.array([1, 1]), heard), items=np.array([[5, 6, 7, 0], [0, 0, 0, 0]]))
    np.testing.assert_allclose(list_metrics(found, at=(2, 4))["repeats_2"], [1 / 2, 0])
    np.testing.assert_allclose(list_metrics(found, at=(2, 4))["repeats_4"], [2 / 3, 0])


def test_columns_come_in_the_order_of_the_list_then_of_the_cut_off():
    columns = ["mrr", "hr_50", "hr_10", "serendipity_10", "ndcg_10", "coverage_30"]
    expected = ["ndcg_10", "hr_10", "hr_50", "mrr", "coverage_30", "serendipity_10"]
    assert sorted(columns, key=metric_order) == expected
    assert metric_of("serendipity_10").title == "Serendipity"


def test_a_name_is_told_from_its_cut_off():
    assert all(name.isalnum() for name in METRICS)
