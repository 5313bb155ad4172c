"""Elapsed times and their buckets."""

import torch

from fuxi_beta.ops.elapsed import BUCKETS, bucket_of, log_elapsed


def test_buckets_are_logarithmic_and_bounded():
    differences = torch.tensor([0, 1, 2, 60, -60, 10**18])
    assert bucket_of(differences).tolist() == [0, 0, 2, 13, 13, BUCKETS - 1]


def test_logarithms_are_exact_to_the_second_and_zero_before_the_event():
    query_time = 2_000_000_000 + torch.tensor([0, 1, 0])
    key_time = 2_000_000_000 + torch.tensor([0, 0, 1])
    assert torch.equal(log_elapsed(query_time, key_time, torch.float32), torch.tensor([0.0, 1.0, 0.0]).log1p())
