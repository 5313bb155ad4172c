"""Ranking metrics on hand-worked lists."""

import math

import numpy as np

from fuxi_beta.evaluation.metrics import list_metrics, rank_metrics


def test_list_metrics_by_hand():
    hits = np.array([[False, True, False, True], [False, False, False, False], [True, True, False, False]])
    metrics = list_metrics(hits, np.array([3, 1, 2]), at=(2, 4))
    np.testing.assert_allclose(metrics["hr_2"], [1, 0, 1])
    np.testing.assert_allclose(metrics["recall_2"], [1 / 3, 0, 1])
    np.testing.assert_allclose(metrics["recall_4"], [2 / 3, 0, 1])
    second, fourth = 1 / math.log2(3), 1 / math.log2(5)
    np.testing.assert_allclose(metrics["ndcg_2"], [second / (1 + second), 0, 1])
    np.testing.assert_allclose(metrics["ndcg_4"], [(second + fourth) / (1 + second + 0.5), 0, 1])


def test_lists_shorter_than_the_cut_off_count_what_they_have():
    metrics = list_metrics(np.array([[True, False]]), np.array([2]), at=(5,))
    np.testing.assert_allclose(metrics["recall_5"], [0.5])
    np.testing.assert_allclose(metrics["ndcg_5"], [1 / (1 + 1 / math.log2(3))])


def test_rank_metrics_by_hand_with_halves_between_ties():
    metrics = rank_metrics(np.array([1.0, 2.5, 10.0, 10.5, 2500.0, 2600.0]), at=(10,))
    np.testing.assert_allclose(metrics["hr_10"], [1, 1, 1, 0, 0, 0])
    np.testing.assert_allclose(metrics["ndcg_10"], [1, 1 / math.log2(3.5), 1 / math.log2(11), 0, 0, 0])
    np.testing.assert_allclose(metrics["mrr"], [1, 0.4, 0.1, 1 / 10.5, 1 / 2500, 1 / 2501])
