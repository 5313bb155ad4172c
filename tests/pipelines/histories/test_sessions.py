import itertools

import numpy as np

from pipelines.histories.sessions import session_index


def reference(timestamps, offsets, gap):
    result = []
    for start, stop in itertools.pairwise(offsets):
        session = 0
        for position in range(start, stop):
            if position > start and timestamps[position] - timestamps[position - 1] > gap:
                session += 1
            result.append(session)
    return result


def test_sessions_equal_a_loop_over_events_also_for_listeners_without_events():
    rng = np.random.default_rng(5)
    for _ in range(50):
        lengths = rng.integers(0, 6, rng.integers(1, 8))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        timestamps = np.concatenate([np.sort(rng.integers(0, 40, n)) for n in lengths])
        assert session_index(timestamps, offsets, gap_s=7).tolist() == reference(timestamps, offsets, 7)


def test_no_events_have_no_sessions():
    assert session_index(np.zeros(0, np.int64), np.zeros(3, np.int64), gap_s=1800).tolist() == []


def test_events_of_the_same_second_share_a_session():
    assert session_index(np.array([5, 5, 5]), np.array([0, 3]), gap_s=1).tolist() == [0, 0, 0]
