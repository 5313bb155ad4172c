"""Contributions of plays: they sum to the score, each is what the score loses without it, and the strongest win."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fuxi_beta import models
from fuxi_beta.config import CHANNELS, ModelConfig, TrainConfig
from fuxi_beta.models import reasons
from fuxi_beta.ops import contributions
from fuxi_beta.training.checkpoint import EncodedBatch, TrainedModel

CONFIG = ModelConfig(dim=10, layers=2, max_history=40, position_margin=5)
SONGS = 30
SHAPES = [
    CONFIG,
    replace(CONFIG, dim=7, layers=1),
    replace(CONFIG, dim=12, heads=3, layers=3, ffn_multiply=2),
    replace(CONFIG, dim=9, temporal="zero"),
    replace(CONFIG, dim=8, heads=2, temporal="zero", layers=1),
    replace(CONFIG, temporal="exppow"),
    replace(CONFIG, content_channel=True),
    replace(CONFIG, content_channel=True, periodic_channel=True),
    replace(CONFIG, dim=12, heads=3, temporal="zero", content_channel=True, ffn_multiply=2),
    replace(CONFIG, interval_channel=True),
]


def label(config: ModelConfig) -> str:
    channels = [name for name in CHANNELS if getattr(config, name)]
    return " ".join([f"D{config.dim}", config.temporal, *channels])


every_shape = pytest.mark.parametrize("config", SHAPES, ids=label)
LENGTHS = [5, 0, 40, 1, 17, 0, 2, 33]


def trained(config: ModelConfig, dtype: torch.dtype = torch.float32) -> TrainedModel:
    """Weights far from zero, so that every gate and both maps show."""
    torch.manual_seed(0)
    model: Any = models.build(config).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim and "temporal" not in name and not name.endswith(".raw"):
                parameter.mul_(4)
            if name.endswith(".out"):  # a channel starts without effect
                parameter.normal_(std=0.3)
    candidates = torch.arange(SONGS) > 0
    vectors = torch.randn(SONGS, config.dim, dtype=dtype)
    return TrainedModel(model, config, TrainConfig(mode="all"), vectors, candidates, SONGS - 1, "2026-03-02", 0)


@pytest.fixture
def ragged(make_batch):
    """Listeners without plays, with one, and with many of few songs."""
    batch = make_batch(LENGTHS)
    torch.manual_seed(2)
    return replace(batch, item_index=torch.randint(1, SONGS, batch.item_index.shape))


@dataclass(frozen=True)
class Parts:
    """Contributions to every song of the table, in full."""

    weight: Tensor  # [R, n, V]
    remainder: Tensor  # [R, V]


@torch.inference_mode()
def all_parts(model: TrainedModel, batch: Any) -> tuple[list[int], Tensor, Parts]:
    """Listeners with plays, their vectors, and the contributions to every song of the table."""
    trace = model.model.trace_last(model.item_vectors[batch.item_index], batch)
    assert trace is not None
    rows = batch.lengths.nonzero().squeeze(1)
    table = model.songs().table
    parts = trace.contributions(table.expand(len(rows), -1, -1), rows)
    _, weight = contributions.contributed(parts.terms, batch.offsets, rows)
    return rows.tolist(), trace.vectors[rows], Parts(weight, parts.remainder)


@every_shape
def test_plays_and_remainder_sum_to_the_score(ragged, config):
    model = trained(config)
    _, vectors, parts = all_parts(model, ragged)
    scores = vectors @ model.songs().table.t()
    torch.testing.assert_close(parts.weight.sum(1) + parts.remainder, scores, atol=1e-5, rtol=0)
    assert parts.weight.abs().amax() > 0.01, "no play contributes, so nothing is tested"


@every_shape
@torch.inference_mode()
def test_a_play_contributes_what_the_score_loses_without_its_value(ragged, config):
    """Against the formulas of the block with U, both norms, SiLU(W1 m) and the length of the state as they are."""
    model = trained(config, torch.float64)
    rows, _, parts = all_parts(model, ragged)
    block: Any = model.model.blocks[-1]  # type: ignore[index]
    trace: Any = model.model.trace_last(model.item_vectors[ragged.item_index], ragged)
    mixed, row, x = trace._row, trace._row.rows, trace._x
    channels = trace._channels
    rms = (row.sums.square().mean(1, keepdim=True) + 1e-6).sqrt()
    joined = block.ffn.merge(mixed.output) + x + sum(of_channel.output for _, of_channel in channels)
    normed = joined / (joined.square().mean(1, keepdim=True) + 1e-6).sqrt()
    first, third = block.ffn.gate_and_up.weight.chunk(2)
    silu = torch.nn.functional.silu(normed @ first.T)

    def linearised(value: Tensor, addends: list[Tensor], number: int) -> Tensor:
        """V and the addends of channels of all tokens -> scores of every song of a listener."""
        start, end = ragged.offsets[number], ragged.offsets[number + 1]
        own = value[start:end]
        of_time = torch.zeros_like(own[0])
        if row.decayed is not None:
            of_time = block.mixer.temporal.scale * (row.decayed[start:end, None] * own).sum(0)
        sums = torch.cat([(row.by_position[start:end, None] * own).sum(0), of_time])
        output = block.mixer.by_head(mixed.gate[number] * sums / rms[number])
        stage_one = block.ffn.merge(output) + x[number]
        for (channel, of_channel), addend in zip(channels, addends, strict=True):
            stage_one = stage_one + (of_channel.factor[number] * addend[start:end].sum(0)) @ channel.out
        up = third @ (stage_one / (joined[number].square().mean() + 1e-6).sqrt())
        state = block.ffn.down(silu[number] * up) + stage_one
        return model.songs().table @ state / trace._state[number].norm()

    for place, number in enumerate(rows):
        addends = [of_channel.addend for _, of_channel in channels]
        whole, start = linearised(row.value, addends, number), int(ragged.offsets[number])
        for play in range(int(ragged.lengths[number])):
            without = [row.value.clone(), *(addend.clone() for addend in addends)]
            for value in without:
                value[start + play] = 0
            torch.testing.assert_close(whole - linearised(without[0], without[1:], number), parts.weight[place, play])


def strongest_of(batch: Any, number: int, weight: Tensor, count: int) -> tuple[list[int], list[float]]:
    """The newest token and the summed weight [n] of each song of a listener, the `count` largest above zero."""
    by_song: dict[int, tuple[int, float]] = {}
    for play, token in enumerate(range(int(batch.offsets[number]), int(batch.offsets[number + 1]))):
        song = int(batch.item_index[token])
        by_song[song] = token, by_song.get(song, (0, 0.0))[1] + float(weight[play])
    best = sorted((pair for pair in by_song.values() if pair[1] > 0), key=lambda pair: -pair[1])[:count]
    rest = count - len(best)
    return [token for token, _ in best] + [-1] * rest, [weight for _, weight in best] + [0.0] * rest


@every_shape
@pytest.mark.parametrize("cells", [1, 500, 1 << 18], ids=lambda cells: f"{cells} at once")
def test_the_strongest_songs_are_named_by_their_newest_play(ragged, config, cells, monkeypatch):
    """Against a loop over listeners, songs and plays."""
    monkeypatch.setattr(reasons, "_NUMBERS", cells)
    monkeypatch.setattr(contributions, "CELLS", cells)
    model = trained(config)
    queries = model.queries(ragged)
    items = queries.rank(6)[0].clone()
    items[4, 3:] = 0  # a short list
    found = queries.reasons(items, 3)
    assert found is not None and found.token.shape == found.weight.shape == (len(LENGTHS), 6, 3)
    rows, _, parts = all_parts(model, ragged)
    for number, songs in enumerate(items.tolist()):
        for place, song in enumerate(songs):
            tokens, weights, rest = [-1] * 3, [0.0] * 3, 0.0
            if song:
                row = rows.index(number)
                tokens, weights = strongest_of(ragged, number, parts.weight[row, :, song], 3)
                rest = float(parts.remainder[row, song])
            assert found.token[number, place].tolist() == tokens
            torch.testing.assert_close(found.weight[number, place], torch.tensor(weights), atol=1e-5, rtol=0)
            assert float(found.remainder[number, place]) == pytest.approx(rest, abs=1e-5)
    newest = contributions.newest_of_song(ragged.offsets, ragged.item_index)
    assert bool((newest != torch.arange(len(ragged.item_index))).sum() > 20), "songs repeat"


def test_one_play_and_the_remainder_are_the_score_in_a_list(ragged):
    queries = trained(CONFIG).queries(ragged)
    items, scores = queries.rank(20)
    found = queries.reasons(items, 2)
    assert found is not None
    only = int((ragged.lengths == 1).nonzero())
    pulls = found.token[only, :, 0] >= 0
    assert bool(pulls.any()) and not bool(pulls.all()), "songs that the play pulls, and songs that it pushes away"
    total = found.weight[only].sum(-1) + found.remainder[only]
    torch.testing.assert_close(total[pulls], scores[only][pulls], atol=1e-5, rtol=0)
    assert bool((total[~pulls] > scores[only][~pulls]).all())


@pytest.mark.parametrize(("lengths", "k"), [([], 3), ([0, 0], 3), ([4, 0], 0)])
def test_nobody_and_no_song_have_no_reasons(make_batch, lengths, k):
    found = trained(CONFIG).queries(make_batch(lengths)).reasons(torch.ones(len(lengths), k, dtype=torch.int64), 2)
    assert found is not None and found.token.shape == (len(lengths), k, 2)
    assert bool((found.token == -1).all()) and not found.remainder.any()


def test_models_with_other_mixers_explain_nothing(ragged):
    for config in (replace(CONFIG, name="sasrec"), replace(CONFIG, temporal="exp")):
        queries = trained(config).queries(ragged)
        assert isinstance(queries, EncodedBatch) and queries.reasons(queries.rank(3)[0], 2) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_finds_the_same_reasons(ragged):
    model = trained(CONFIG)
    items, _ = model.queries(ragged).rank(6)
    here, there = model.queries(ragged).reasons(items, 2), trained(CONFIG).to("cuda").queries(ragged).reasons(items, 2)
    assert here is not None and there is not None and there.token.device.type == "cpu"
    assert torch.equal(here.token, there.token)
    torch.testing.assert_close(here.weight, there.weight, atol=1e-4, rtol=0)
