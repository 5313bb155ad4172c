"""Protocol 1 on shards small enough to work by hand: ranks, time conditions, validation."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from fuxi_beta.config import EvaluateConfig, ModelConfig, TrainConfig
from fuxi_beta.data.batches import training_samples
from fuxi_beta.evaluation.leave_one_out import Cases, evaluate_leave_one_out, ranks, split_time
from pipelines.calendar import Calendar

CUT = 1_772_000_000
MODEL = ModelConfig(dim=4, layers=1, max_history=5)
TRAIN = TrainConfig(protocol="leave_one_out", mode="all")
CONFIG = EvaluateConfig(batch_size=2)
HOUR, DAY = 3600, 86_400


class Scores:
    """The same score for every listener."""

    def __init__(self, scores: list[float]) -> None:
        self.row, self.vocabulary_size = torch.tensor(scores), len(scores) - 1

    def scores(self, batch):
        return self.row.expand(batch.num_listeners, -1).clone()


def test_ranks_with_ties_and_history_removed(make_batch):
    batch = make_batch([2, 1, 1])
    batch = replace(batch, seen_offsets=torch.tensor([0, 2, 3, 4]), seen_items=torch.tensor([1, 2, 4, 5]))
    scores = torch.tensor([[99.0, 5, 4, 3, 3, 3, 1]] * 3)
    # Row 0: 1 and 2 are history; 3 ties with 4 and 5. Row 1: 1 and 2 are above target 4 (heard), two tie with it.
    found = ranks(scores, torch.tensor([3, 4, 6]), batch, 6)
    assert found.tolist() == [2.0, 4.0, 5.0]
    assert ranks(scores[:, :6], torch.tensor([3, 4, 1]), batch, 5).tolist() == [2.0, 4.0, 1.0]


def test_leave_one_out_by_hand(make_shards):
    manifest = make_shards(
        [
            {
                1: [(1, 100, 100), (2, 200, 100), (3, 200, 100)],  # target 3, same second
                2: [(1, 100, 100), (4, 4000, 100), (5, 4001, 10)],  # target 4 later; the newest skip is nothing
                3: [(6, 100, 100)],  # no history
                4: [],
                5: [(5, 100, 100), (1, 3700, 100)],  # target 1, an hour later exactly
            }
        ],
        vocabulary_size=6,
        data_end=CUT,
    )
    scorer = Scores([9, 6, 5, 4, 3, 2, 1])
    result = evaluate_leave_one_out(manifest, {"fixed": scorer}, model=MODEL, train=TRAIN, config=CONFIG)
    assert (result.listeners, result.excluded) == (3, 2)
    assert result.slices == {"all": 3, "same_second": 1, "within_hour": 1, "later": 1}
    metrics = result.metrics["fixed"]
    assert metrics["same_second"]["mrr"] == 1  # 1 and 2 are history, so song 3 is first
    assert metrics["later"]["mrr"] == pytest.approx(1 / 3)  # 2 and 3 are above song 4
    assert metrics["within_hour"]["mrr"] == 1
    assert metrics["all"]["ndcg_10"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert metrics["all"]["hr_50"] == 1


def test_leave_one_out_of_a_network_asks_for_the_true_time(make_shards):
    manifest = make_shards([{1: [(1, 100, 100), (2, 200, 100), (3, 9000, 100)]}], vocabulary_size=6, data_end=CUT)
    times = []

    class Watched(Scores):
        def scores(self, batch):
            times.append(batch.next_timestamp.tolist())
            return super().scores(batch)

    evaluate_leave_one_out(manifest, {"w": Watched([0.0] * 7)}, model=MODEL, train=TRAIN, config=CONFIG)
    assert times == [[200, 9000]]


@pytest.fixture
def three(make_shards):
    """Three listeners whose last gaps are 10, 1,000 and 100,000 seconds."""
    events = {
        user: [(user, start, 100), (user + 3, start + 50, 100), (7, start + 50 + gap, 100)]
        for user, start, gap in ((1, 5 * DAY, 10), (2, 6 * DAY + 9 * HOUR, 1_000), (3, 7 * DAY, 100_000))
    }
    return make_shards([events], vocabulary_size=8, data_end=CUT, row_group_events=6)


class Watched(Scores):
    """Notes what it was asked."""

    def __init__(self, vocabulary_size: int = 8) -> None:
        super().__init__([0.0] * (vocabulary_size + 1))
        self.asked: list[int] = []

    def scores(self, batch):
        self.asked += batch.next_timestamp[batch.offsets[1:] - 1].tolist()
        return super().scores(batch)


def evaluate(manifest, scorer, train=TRAIN, **options):
    return evaluate_leave_one_out(manifest, {"it": scorer}, model=MODEL, train=train, config=CONFIG, **options)


def test_ranks_come_with_their_listeners_in_the_order_of_the_shards(three):
    result = evaluate(three, Scores([0, 9, 8, 7, 6, 5, 4, 3, 2]))
    assert result.user_id.to_pylist() == [1, 2, 3]
    assert result.ranks["it"].tolist() == [5.0, 5.0, 5.0]  # six songs score higher, two of them were heard


def learned_from(manifest, train, *, data_end=CUT):
    """What training reads of the shards' first file."""
    return training_samples(
        manifest.histories(manifest.files[0]),
        sample=np.arange(3),
        model=MODEL,
        train=train,
        calendar=Calendar(),
        data_end=data_end,
        vocabulary_size=8,
    )


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("true", [5 * DAY + 60, 6 * DAY + 9 * HOUR + 1_050, 7 * DAY + 100_050]),
        ("previous", [5 * DAY + 50, 6 * DAY + 9 * HOUR + 50, 7 * DAY + 50]),
        ("fixed-hour", [5 * DAY + 8 * HOUR, 7 * DAY + 8 * HOUR, 7 * DAY + 8 * HOUR]),
    ],
)
def test_what_a_model_is_told_of_the_time_in_test_and_in_training(three, condition, expected):
    train = replace(TRAIN, request_time=condition)
    scorer = Watched()
    result = evaluate(three, scorer, train)
    assert scorer.asked == expected
    assert result.slices == {"all": 3, "same_second": 0, "within_hour": 2, "later": 1}  # slices know the truth
    samples = learned_from(three, train)
    first = samples.timestamp[samples.offsets[:-1]]
    told = samples.next_timestamp[samples.offsets[:-1]]
    if condition == "true":
        assert (told - first).tolist() == [50, 50, 50]
    elif condition == "previous":
        assert (told == first).all()
    else:
        assert (told % DAY == 8 * HOUR).all() and ((told > first) & (told <= first + DAY)).all()


def test_permuted_gaps_are_the_same_gaps_at_other_listeners(three):
    scorers = [Watched() for _ in range(20)]
    for seed, scorer in enumerate(scorers):
        evaluate(three, scorer, permute_gaps=seed)
    last = np.array([5 * DAY + 50, 6 * DAY + 9 * HOUR + 50, 7 * DAY + 50])
    gaps = [tuple((np.array(scorer.asked) - last).tolist()) for scorer in scorers]
    assert all(sorted(gap) == [10, 1_000, 100_000] for gap in gaps)
    assert len(set(gaps)) > 2
    again = Watched()
    evaluate(three, again, permute_gaps=3)
    assert again.asked == scorers[3].asked


def test_validation_predicts_the_second_newest_play_and_never_sees_the_newest(three):
    scorer = Watched()
    evaluate(three, scorer, newest_removed=1)
    assert scorer.asked == [5 * DAY + 50, 6 * DAY + 9 * HOUR + 50, 7 * DAY + 50]
    targets = [
        int(histories.item_index[newest[row]])
        for histories, _, rows, newest in Cases(three, TRAIN, newest_removed=1).row_groups()
        for row in rows
    ]
    assert targets == [4, 5, 6]
    samples = learned_from(three, replace(TRAIN, held_out=2))
    assert not samples.target.any()  # one play is left, and nothing after it to learn


def test_a_scorer_of_listeners_is_asked_by_user_id(three):
    class ByUser:
        vocabulary_size = 8

        def scores_of_listeners(self, user_id: pa.Array):
            rows = [[float(song == 7) * (user == 2) for song in range(9)] for user in user_id.to_pylist()]
            return torch.tensor(rows)

    result = evaluate(three, ByUser())
    assert result.ranks["it"].tolist() == [3.5, 1.0, 3.5]  # five songs tie with 7 but for listener 2


def test_a_split_in_time_asks_for_the_first_play_after_it(three):
    split = 6 * DAY + 9 * HOUR + 60  # listener 1 is done by then, 2 has played twice, 3 has not begun
    scorer = Watched()
    result = evaluate(three, scorer, replace(TRAIN, held_out=0), split=split)
    assert result.user_id.to_pylist() == [2] and scorer.asked == [6 * DAY + 9 * HOUR + 1_050]
    assert (result.listeners, result.excluded) == (1, 2)
    samples = learned_from(three, replace(TRAIN, held_out=0), data_end=split)
    assert samples.target.tolist() == [4, 7, 5]  # all of listener 1, the second play of 2, nothing of 3


def test_the_time_of_a_split_has_its_share_of_all_events_before_it(make_shards):
    events = {user: [(1, 100 * user + k, 100) for k in range(10)] for user in range(10)}
    manifest = make_shards([events], vocabulary_size=2, data_end=CUT, row_group_events=30)
    assert split_time(manifest, 0.5) in range(409, 501)
