"""Recency, item neighbours, EASE and BPR-MF against slow references, by hand, and under both protocols."""

import datetime as dt
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from fuxi_beta.baselines import bprmf, ease
from fuxi_beta.baselines.bprmf import BPRMFConfig, Factors, Triples, fit_bprmf, initial_factors, step
from fuxi_beta.baselines.ease import ease_weights, fit_ease
from fuxi_beta.baselines.item_knn import fit_item_knn, heard_songs, nearest
from fuxi_beta.baselines.popularity import fit_popularity
from fuxi_beta.baselines.recency import fit_recency
from fuxi_beta.config import EvaluateConfig, ModelConfig, TrainConfig
from fuxi_beta.data.batches import inference_batch
from pipelines.calendar import Calendar
from pipelines.errors import InputError

CUT = Calendar().day_start(dt.date(2026, 3, 2))
TRAIN = TrainConfig(mode="all")
LEAVE_ONE_OUT = TrainConfig(protocol="leave_one_out", mode="all")
SONGS = 6
QUICK = BPRMFConfig(factors=4, epochs=3, batch_size=4)


def small_bprmf(manifest, **kwargs):
    return fit_bprmf(manifest, config=QUICK, **kwargs)


FITS = pytest.mark.parametrize("fit", [fit_recency, fit_item_knn, fit_ease, small_bprmf])


def triples_of(manifest):
    return Triples(heard_songs(manifest, end=CUT, train=TRAIN)[0], manifest.vocabulary_size)


def requests(manifest, *, end: int = CUT, train: TrainConfig = TRAIN, max_history: int = 200):
    return inference_batch(
        manifest.histories(manifest.files[0]).before(end),
        request_time=end,
        model=ModelConfig(max_history=max_history),
        train=train,
        calendar=Calendar(),
        vocabulary_size=manifest.vocabulary_size,
    )


def scores_of(baseline, manifest, batch):
    """Scores of the listeners of the first file."""
    if isinstance(baseline, bprmf.BPRMF):
        return baseline.scores_of_listeners(manifest.histories(manifest.files[0]).user_id)
    return baseline.scores(batch)


@pytest.fixture
def shards(make_shards):
    return make_shards(
        [
            {
                1: [(1, CUT - 9, 100), (2, CUT - 8, 100), (1, CUT - 7, 100), (3, CUT - 6, 100)],
                2: [(2, CUT - 5, 100), (3, CUT - 4, 100)],
            },
            {3: [(2, CUT - 6, 100), (5, CUT - 5, 10), (4, CUT - 4, 100), (6, CUT, 100)], 4: [], 5: [(3, CUT - 1, 90)]},
        ],
        vocabulary_size=SONGS,
        data_end=CUT + 86_400,
        row_group_events=1,
    )


@pytest.fixture
def crowd(make_shards):
    """40 listeners of 12 songs with repeats, and what they played as a dense matrix of 0 and 1."""
    random = np.random.default_rng(5)
    users, X = {}, np.zeros((40, 13))
    for user in range(40):
        items = random.integers(1, 13, random.integers(1, 12)).tolist()
        users[user] = [(item, CUT - 100 + place, 100) for place, item in enumerate(items)]
        X[user, items] = 1
    return make_shards([users], vocabulary_size=12, data_end=CUT, row_group_events=42), X


def contexts(batch):
    """Each listener's items, oldest first."""
    return [
        batch.item_index[start:stop].tolist() for start, stop in zip(batch.offsets, batch.offsets[1:], strict=False)
    ]


# Recency


def test_recency_sums_decayed_plays_above_popular_songs_above_the_rest(shards):
    recency = fit_recency(shards, end=CUT, train=TRAIN, decay=0.5)
    # Listener 1 by age: 3, 1, 2, 1. Distinct listeners: 1 of song 1, 3 of 2, 3 of 3, 1 of 4.
    expected = [[-1, 0.5 + 0.125, 0.25, 1, 1 / 4 - 1, -1, -1], [-1, 1 / 4 - 1, 0.5, 1, 1 / 4 - 1, -1, -1]]
    torch.testing.assert_close(recency.scores(requests(shards)), torch.tensor(expected))
    assert recency.recommend(requests(shards), 4)[0].tolist() == [[3, 1, 2, 4], [3, 2, 1, 4]]


def test_a_play_too_old_to_count_still_precedes_every_other_song(make_shards):
    long_ago = [(1, CUT - 999, 100), *((2, CUT - 900 + n, 100) for n in range(200))]
    others = {user: [(3, CUT - 9, 100)] for user in range(2, 9)}
    manifest = make_shards([{1: long_ago, **others}], vocabulary_size=SONGS, data_end=CUT)
    recency = fit_recency(manifest, end=CUT, train=TRAIN, decay=0.1)
    assert recency.recommend(requests(manifest, max_history=300), 3)[0][0].tolist() == [2, 1, 3]


def test_recency_orders_unheard_songs_as_the_popularity_row_does(crowd):
    manifest, X = crowd
    batch = requests(manifest)
    recency = fit_recency(manifest, end=CUT, train=LEAVE_ONE_OUT).scores(batch)
    popularity = fit_popularity(manifest, end=CUT, train=LEAVE_ONE_OUT, config=EvaluateConfig()).scores(batch)
    for row, heard in enumerate(X > 0):
        unheard = np.flatnonzero(~heard)
        assert recency[row, unheard].argsort(stable=True).equal(popularity[row, unheard].argsort(stable=True))
        assert not heard.any() or recency[row, heard].min() > 0 > recency[row, unheard].max()


def test_recency_in_exclusive_mode_is_the_popularity_list(shards):
    train = replace(TRAIN, mode="exclusive")
    popularity = fit_popularity(shards, end=CUT, train=train, config=EvaluateConfig())
    batch = requests(shards, train=train)
    assert fit_recency(shards, end=CUT, train=train).recommend(batch, 4)[0].equal(popularity.recommend(batch, 4)[0])


# Item neighbours


def test_cosines_by_hand_leave_out_skips_and_later_plays(shards):
    similarities = fit_item_knn(shards, end=CUT, train=TRAIN).similarities.toarray()
    # Listeners of 1: {1}; 2: {1, 2, 3}; 3: {1, 2, 5}; 4: {3}.
    pairs = {(1, 2): 1 / math.sqrt(3), (1, 3): 1 / math.sqrt(3), (2, 3): 2 / 3, (2, 4): 1 / math.sqrt(3)}
    expected = np.zeros((7, 7))
    for (first, second), value in pairs.items():
        expected[first, second] = expected[second, first] = value
    np.testing.assert_allclose(similarities, expected, rtol=1e-6)


@pytest.mark.parametrize("neighbours", [1, 3, 100])
def test_nearest_songs_are_those_of_a_dense_sort(crowd, neighbours, monkeypatch):
    monkeypatch.setattr("fuxi_beta.baselines.base._BLOCK", 5)
    manifest, X = crowd
    expected = np.zeros((13, 13))
    for song in range(1, 13):
        cosine = [
            float(X[:, song] @ X[:, other] / math.sqrt(X[:, song].sum() * X[:, other].sum() or 1))
            for other in range(13)
        ]
        cosine[song] = 0
        for other in sorted(range(13), key=lambda j: (-cosine[j], j))[:neighbours]:
            expected[song, other] = cosine[other]
    heard, users = heard_songs(manifest, end=CUT, train=TRAIN)
    assert users == list(range(40))
    np.testing.assert_array_equal(heard.toarray(), X)
    np.testing.assert_allclose(nearest(heard, neighbours).toarray(), expected, rtol=1e-6)


def test_neighbour_scores_are_decayed_sums_over_every_play(crowd):
    manifest, _ = crowd
    batch = requests(manifest, max_history=8)
    knn = fit_item_knn(manifest, end=CUT, train=TRAIN, neighbours=4, decay=0.8)
    similarity, expected = knn.similarities.toarray(), np.zeros((40, 13))
    for row, items in enumerate(contexts(batch)):
        for age, item in enumerate(reversed(items)):
            expected[row] += 0.8**age * similarity[item]
    np.testing.assert_allclose(knn.scores(batch).numpy(), expected, rtol=1e-5, atol=2e-6)


# EASE


def test_ease_weights_are_the_ridge_regression_of_each_song_on_the_others(crowd):
    """Column j of B, found by itself: least squares of X_j on the other columns with the same penalty."""
    manifest, X = crowd
    heard, _ = heard_songs(manifest, end=CUT, train=TRAIN)
    found = ease_weights(heard[:, 1:], 3.0).numpy()
    assert found.dtype == np.float64
    X = X[:, 1:]
    for song in range(12):
        others = [other for other in range(12) if other != song]
        A = X[:, others]
        weights = np.linalg.solve(A.T @ A + 3.0 * np.eye(11), A.T @ X[:, song])
        np.testing.assert_allclose(found[others, song], weights, atol=1e-12)
        assert found[song, song] == 0


def test_ease_of_two_songs_by_hand(make_shards):
    users = {1: [(1, CUT - 9, 100), (4, CUT - 8, 100)], 2: [(4, CUT - 7, 100)]}
    manifest = make_shards([users], vocabulary_size=SONGS, data_end=CUT)
    found = fit_ease(manifest, end=CUT, train=TRAIN, regularisation=1, decay=1)
    # X'X + I = [[2, 1], [1, 3]], so B = [[0, 1/2], [1/3, 0]].
    assert found.songs.tolist() == [1, 4]
    torch.testing.assert_close(found.weights, torch.tensor([[0, 1 / 2], [1 / 3, 0]]))
    expected = torch.tensor([[0, 1 / 3, 0, 0, 1 / 2, 0, 0], [0, 1 / 3, 0, 0, 0, 0, 0]])
    torch.testing.assert_close(found.scores(requests(manifest)), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_ease_scores_count_a_song_once_at_its_newest_play(crowd, decay, monkeypatch):
    monkeypatch.setattr("fuxi_beta.baselines.base._BLOCK", 5)
    manifest, _ = crowd
    batch = requests(manifest, max_history=8)
    found = fit_ease(manifest, end=CUT, train=TRAIN, regularisation=2, decay=decay)
    expected = np.zeros((40, 13))
    for row, items in enumerate(contexts(batch)):
        newest = {item: decay ** (len(items) - 1 - place) for place, item in enumerate(items)}
        for item, weight in newest.items():
            expected[row, 1:] += weight * found.weights[item - 1].numpy()
    np.testing.assert_allclose(found.scores(batch).numpy(), expected, atol=3e-6)


def test_ease_refuses_a_catalogue_that_needs_too_much_memory(shards, monkeypatch):
    monkeypatch.setattr(ease, "MAX_SONGS", 3)
    with pytest.raises(InputError, match=r"EASE on 4 songs .* GB of memory.* stops at 3 songs: leave"):
        fit_ease(shards, end=CUT, train=TRAIN)
    monkeypatch.setattr(ease, "MAX_SONGS", 4)
    fit_ease(shards, end=CUT, train=TRAIN)


# BPR-MF


def test_a_step_is_the_papers_update():
    torch.manual_seed(0)
    before = Factors(torch.randn(3, 2), torch.randn(5, 2), torch.randn(5))
    after = Factors(before.users.clone(), before.items.clone(), before.bias.clone())
    user, liked, other = torch.tensor([0, 2, 0]), torch.tensor([1, 2, 1]), torch.tensor([3, 1, 4])
    found = step(after, user, liked, other, lr=0.1, regularisation=0.05)
    P, Q, b = (value.numpy().astype(float) for value in (before.users, before.items, before.bias))
    new_p, new_q, new_b, loss = P.copy(), Q.copy(), b.copy(), 0.0
    for u, i, j in [(0, 1, 3), (2, 2, 1), (0, 1, 4)]:
        x = P[u] @ Q[i] + b[i] - P[u] @ Q[j] - b[j]
        pull = math.exp(-x) / (1 + math.exp(-x))
        new_p[u] += 0.1 * (pull * (Q[i] - Q[j]) - 0.05 * P[u])
        new_q[i] += 0.1 * (pull * P[u] - 0.05 * Q[i])
        new_q[j] += 0.1 * (pull * -P[u] - 0.05 * Q[j])
        new_b[i] += 0.1 * (pull - 0.05 * b[i])
        new_b[j] += 0.1 * (-pull - 0.05 * b[j])
        loss += math.log(1 + math.exp(-x))
    assert found == pytest.approx(loss)
    for mine, theirs in zip((after.users, after.items, after.bias), (new_p, new_q, new_b), strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-5, atol=1e-6)


def test_a_step_follows_the_gradient_of_bpr_opt():
    torch.manual_seed(1)
    before = Factors(*(torch.randn(*shape, dtype=torch.float64) for shape in ((3, 2), (5, 2), (5,))))
    leaves = [value.clone().requires_grad_() for value in (before.users, before.items, before.bias)]
    user, liked, other = torch.tensor([0, 2, 0]), torch.tensor([1, 2, 1]), torch.tensor([3, 1, 4])
    P, Q, b = leaves
    margin = (P[user] * (Q[liked] - Q[other])).sum(1) + b[liked] - b[other]
    squares = sum(value.square().sum() for value in (P[user], Q[liked], Q[other], b[liked], b[other]))
    (-torch.sigmoid(margin).log().sum() + 0.05 / 2 * squares).backward()
    after = Factors(before.users.clone(), before.items.clone(), before.bias.clone())
    step(after, user, liked, other, lr=0.1, regularisation=0.05)
    for new, leaf in zip((after.users, after.items, after.bias), leaves, strict=True):
        assert leaf.grad is not None
        torch.testing.assert_close(new, leaf.detach() - 0.1 * leaf.grad)


def test_an_epoch_is_every_pair_once_with_uniform_songs_not_played(crowd):
    manifest, X = crowd
    triples = triples_of(manifest)
    drawn = np.zeros((40, 13))
    orders = set()
    for epoch in range(400):
        user, liked, other = (side.numpy() for side in triples.epoch(1, epoch))
        orders.add(user.tobytes() + liked.tobytes())
        assert sorted(zip(user, liked, strict=True)) == sorted(zip(*X.nonzero(), strict=True))
        np.add.at(drawn, (user, other), 1)
    assert len(orders) == 400
    allowed = X == 0
    allowed[:, 0] = False
    assert (drawn > 0).tolist() == allowed.tolist()
    expected = np.where(allowed, 400 * X.sum(1, keepdims=True) / allowed.sum(1, keepdims=True), 0)
    deviation = (drawn - expected)[allowed] / np.sqrt(expected[allowed])
    assert np.abs(deviation).max() < 4.5


def test_songs_not_played_are_counted_in_order(crowd):
    manifest, X = crowd
    triples = triples_of(manifest)
    for user in range(40):
        unheard = [song for song in range(1, 13) if not X[user, song]]
        numbers = torch.arange(len(unheard))
        assert triples.not_played(torch.full_like(numbers, user), numbers).tolist() == unheard


def test_a_listener_of_everything_teaches_nothing(make_shards):
    everything = [(song, CUT - 9 + song, 100) for song in (1, 2, 3)]
    manifest = make_shards([{1: everything, 2: everything[:1]}], vocabulary_size=3, data_end=CUT)
    user, liked, other = triples_of(manifest).epoch(1, 1)
    assert (user.tolist(), liked.tolist()) == ([1], [1])
    assert other.item() in {2, 3}


def test_bprmf_is_a_function_of_its_seed_alone(crowd):
    manifest, _ = crowd
    listeners = pa.array(range(40))
    torch.manual_seed(1)
    first = small_bprmf(manifest, end=CUT, train=TRAIN).scores_of_listeners(listeners)
    torch.manual_seed(2)
    assert small_bprmf(manifest, end=CUT, train=TRAIN).scores_of_listeners(listeners).equal(first)
    other = fit_bprmf(manifest, end=CUT, train=TRAIN, config=replace(QUICK, seed=2)).scores_of_listeners(listeners)
    assert not torch.isclose(other, first).any(1).all()
    assert not initial_factors(3, 4, QUICK).users.equal(initial_factors(3, 4, replace(QUICK, seed=2)).users)


def test_bprmf_learns_which_block_of_songs_a_listener_is_of(make_shards):
    """Two groups of listeners, two blocks of 10 songs; everybody lacks some of their own block."""
    random = np.random.default_rng(2)
    users = {
        user: [(10 * (user % 2) + int(song) + 1, CUT - 99, 100) for song in random.choice(10, 6, replace=False)]
        for user in range(60)
    }
    manifest = make_shards([users], vocabulary_size=20, data_end=CUT)
    losses = []
    config = BPRMFConfig(factors=8, epochs=30, lr=0.1, batch_size=16)
    found = fit_bprmf(
        manifest, end=CUT, train=TRAIN, config=config, on_epoch=lambda epoch, loss: losses.append((epoch, loss))
    )
    assert [epoch for epoch, _ in losses] == list(range(1, 31))
    assert losses[0][1] > 2 * losses[-1][1]
    scores = found.scores_of_listeners(pa.array(range(60)))
    for user in range(60):
        mine = {10 * (user % 2) + song for song in range(1, 11)} - {event[0] for event in users[user]}
        foreign = range(10 * (1 - user % 2) + 1, 10 * (1 - user % 2) + 11)
        assert min(scores[user, song] for song in mine) > max(scores[user, song] for song in foreign)


def test_bprmf_scores_are_by_user_id_and_strangers_get_the_bias(shards):
    found = small_bprmf(shards, end=CUT, train=TRAIN)
    both = found.scores_of_listeners(pa.array([3, 99, 1]))
    expected = found.factors.items @ found.factors.users[2] + found.factors.bias
    torch.testing.assert_close(both[0], expected)
    assert both[1].equal(found.factors.bias)
    torch.testing.assert_close(both[2], found.scores_of_listeners(pa.array([1]))[0])
    assert found.scores_of_listeners(pa.array([], pa.int64())).shape == (0, SONGS + 1)


def test_bprmf_does_not_pretend_to_know_whose_batch_it_is(shards):
    with pytest.raises(NotImplementedError, match="scores_of_listeners"):
        small_bprmf(shards, end=CUT, train=TRAIN).recommend(requests(shards), 3)


@pytest.mark.parametrize(("lr", "loss"), [(50.0, r"\d"), (1e30, "nan")])
def test_bprmf_that_diverges_says_so(crowd, lr, loss):
    manifest, _ = crowd
    with pytest.raises(ValueError, match=rf"diverged: the loss is {loss}.* in epoch \d+ .* lower lr"):
        fit_bprmf(manifest, end=CUT, train=TRAIN, config=replace(QUICK, lr=lr, epochs=50))


# All of them


@FITS
def test_no_score_depends_on_the_held_out_play_or_on_events_from_end_on(make_shards, fit):
    """Two logs that differ in each listener's newest play, and in plays from `end` on."""

    def log(newest: int, later: int, day: int):
        users = {
            1: [(1, CUT - 9, 100), (2, CUT - 8, 100), (newest, CUT - 7, 100)],
            2: [(2, CUT - 9, 100), (3, CUT - 8, 100), (newest, CUT - 7, 100)],
        }
        later_plays = {3: [(1, CUT - 9, 100), (3, CUT - 5, 100), (later, CUT + 1, 100), (4, CUT + 2, 100)]}
        ds = dt.date(2026, 3, day)
        return make_shards([users, later_plays], vocabulary_size=SONGS, data_end=CUT + 9, ds=ds)

    ours, theirs, earlier = log(4, 5, 4), log(6, 6, 5), log(4, 5, 6)
    context = requests(ours, end=CUT - 7)
    scores = [scores_of(fit(manifest, end=CUT, train=LEAVE_ONE_OUT), manifest, context) for manifest in (ours, theirs)]
    assert scores[0].equal(scores[1])
    changed = scores_of(fit(earlier, end=CUT - 8, train=LEAVE_ONE_OUT), earlier, context)
    assert not changed.equal(scores[0])


@FITS
def test_scores_are_finite_float32_for_every_song_even_without_plays(make_shards, shards, fit):
    nothing = make_shards([{1: []}], vocabulary_size=SONGS, data_end=CUT, ds=dt.date(2026, 3, 9))
    for manifest, listeners in ((shards, 2), (nothing, 1)):
        batch = requests(manifest)
        scores = scores_of(fit(manifest, end=CUT, train=TRAIN), manifest, batch)
        assert scores.dtype == torch.float32
        assert scores.shape == (listeners, SONGS + 1)
        assert scores.isfinite().all()


@FITS
def test_candidates_and_vocabulary_are_those_of_every_baseline(shards, fit):
    assert fit(shards, end=CUT, train=TRAIN).candidates.tolist() == [False] + [True] * SONGS
    candidates = torch.tensor([False, False, True, False, True, False, False])
    found = fit(shards, end=CUT, train=TRAIN, candidates=candidates)
    assert found.vocabulary_size == SONGS
    assert found.candidates is candidates
    if fit is not small_bprmf:
        assert sorted(found.recommend(requests(shards), 3)[0][0].tolist()) == [0, 2, 4]


@pytest.mark.parametrize("fit", [fit_item_knn, fit_ease])
def test_a_listener_without_plays_gets_popular_songs(make_shards, fit):
    users = {1: [], 2: [(5, CUT - 9, 100), (4, CUT - 8, 100)], 3: [(5, CUT - 7, 100)]}
    manifest = make_shards([users], vocabulary_size=SONGS, data_end=CUT)
    assert fit(manifest, end=CUT, train=TRAIN).recommend(requests(manifest), 3)[0][0].tolist() == [5, 4, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: fit_recency(m, end=CUT, train=TRAIN, decay=0), "decay is 0"),
        (lambda m: fit_item_knn(m, end=CUT, train=TRAIN, decay=1.1), "decay is 1.1"),
        (lambda m: fit_item_knn(m, end=CUT, train=TRAIN, neighbours=0), "neighbours is 0"),
        (lambda m: fit_ease(m, end=CUT, train=TRAIN, regularisation=0), "regularisation is 0"),
        (lambda m: fit_ease(m, end=CUT, train=TRAIN, decay=-1), "decay is -1"),
        (lambda _: BPRMFConfig(factors=0), "factors is 0"),
        (lambda _: BPRMFConfig(lr=0), "lr is 0"),
        (lambda _: BPRMFConfig(regularisation=-1), "regularisation is -1"),
    ],
)
def test_settings_outside_their_range_are_refused_by_name(shards, call, message):
    with pytest.raises(ValueError, match=message):
        call(shards)


def test_reasons_of_item_neighbours_are_parts_of_the_score_that_add_up_to_it(make_shards):
    random = np.random.default_rng(3)
    listeners = {
        user: [(int(song), CUT - 1000 + n, 100) for n, song in enumerate(random.integers(1, SONGS + 1, count))]
        for user, count in enumerate((5, 0, 9, 1), start=1)
    }
    listeners[2] = [(1, CUT + 5, 100)]  # nothing before the cut
    manifest = make_shards([listeners], data_end=CUT + 86_400, vocabulary_size=SONGS)
    knn = fit_item_knn(manifest, end=CUT, train=TRAIN, neighbours=3)
    batch = requests(manifest)
    queries = knn.queries(batch)
    items = torch.tensor([*range(1, SONGS + 1), 0]).repeat(batch.num_listeners, 1)
    scores, found = knn.scores(batch), queries.reasons(items, 2)
    assert found is not None
    similar = knn.similarities.toarray()
    for listener in range(batch.num_listeners):
        start, stop = batch.offsets[listener : listener + 2].tolist()
        played = batch.item_index[start:stop].tolist()
        for place in range(SONGS):
            parts: dict[int, float] = {}
            for age, song in enumerate(reversed(played)):
                parts[song] = parts.get(song, 0) + float(similar[song, place + 1]) * knn.decay**age
            best = sorted((part for part in parts.values() if part > 0), reverse=True)[:2]
            named = [n for n in found.token[listener, place].tolist() if n >= 0]
            assert found.weight[listener, place].tolist()[: len(best)] == pytest.approx(best)
            assert len(named) == len(best)
            assert [parts[int(batch.item_index[n])] for n in named] == pytest.approx(best)
            assert all(start + len(played) - 1 - played[::-1].index(int(batch.item_index[n])) == n for n in named)
            if played:
                whole = sum(parts.values()) + float(found.remainder[listener, place])
                assert whole == pytest.approx(float(scores[listener, place + 1]), rel=1e-5)
    assert found.token[:, SONGS].max() == -1
