"""SASRec, LLaMa, HSTU, FuXi-alpha and their variants against loops written from the formulas, a listener at a time."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fuxi_beta import models, ops
from fuxi_beta.config import ModelConfig

CONFIG = ModelConfig(dim=8, layers=2, ffn_multiply=3, max_history=16, position_margin=5)
REACH = 21
LENGTHS = [5, 0, 16, 1]


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def rms(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)


def layer_norm(x: Tensor, eps: float, gain: Tensor | float = 1.0, bias: Tensor | float = 0.0) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + eps) * gain + bias


def cells(n: int, weight: Callable[[int, int], Tensor]) -> Tensor:
    """The causal map with weight(i, j) at row i, column j <= i."""
    zero = torch.zeros((), dtype=torch.float64)
    return torch.stack([torch.stack([weight(i, j) if j <= i else zero for j in range(n)]) for i in range(n)])


class Listener:
    """One listener's tokens, and the maps that several models have."""

    def __init__(self, vectors: Tensor, timestamp: list[int], next_timestamp: list[int]) -> None:
        self.vectors, self.n = vectors, len(vectors)
        self.timestamp, self.next_timestamp = timestamp, next_timestamp

    def gap(self, i: int, j: int) -> int:
        return self.next_timestamp[i] - self.timestamp[j]

    def bucket(self, i: int, j: int) -> int:
        return min(int(math.log(max(abs(self.gap(i, j)), 1)) / 0.301), 128)

    def positional(self, bias: Any) -> Tensor:
        return cells(self.n, lambda i, j: bias.weight[REACH - 1 + j - i])

    def bucketed(self, function: Any) -> Tensor:
        return cells(self.n, lambda i, j: function.weight[self.bucket(i, j)])

    def power(self, function: Any) -> Tensor:
        return cells(self.n, lambda i, j: function.scale * (1.0 + max(self.gap(i, j), 0)) ** -function.decay)


def by_head(heads: int, *parts: Tensor) -> list[list[Tensor]]:
    """Columns of each part, head by head."""
    return [list(columns) for columns in zip(*(part.chunk(heads, dim=1) for part in parts), strict=True)]


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rows = []
    for i in range(len(q)):
        scores = torch.stack([(q[i] * k[j]).sum() / math.sqrt(q.shape[1]) for j in range(i + 1)])
        weights = torch.exp(scores - scores.max())
        rows.append((weights[:, None] * v[: i + 1]).sum(0) / weights.sum())
    return torch.stack(rows)


def swiglu(ffn: Any, m: Tensor) -> Tensor:
    first, third = ffn.gate_and_up.weight.chunk(2)
    return (silu(m @ first.T) * (m @ third.T)) @ ffn.down.weight.T


def slow_sasrec(model: Any, listener: Listener) -> Tensor:
    x = embedded(model, listener)
    for block in model.blocks:
        query = layer_norm(x, 1e-8, block.query_norm.weight, block.query_norm.bias)
        q = query @ block.query.weight.T + block.query.bias
        k, v = (x @ block.key_and_value.weight.T + block.key_and_value.bias).chunk(2, dim=1)
        heads = [softmax_attention(*columns) for columns in by_head(block.heads, q, k, v)]
        h = torch.cat(heads, dim=1) @ block.out.weight.T + block.out.bias + query
        f = layer_norm(h, 1e-8, block.norm.weight, block.norm.bias)
        inner = (f @ block.first.weight.T + block.first.bias).clamp(min=0)
        x = inner @ block.second.weight.T + block.second.bias + f
    return x


def slow_rotary(x: Tensor, heads: int) -> Tensor:
    out = x.clone()
    size = x.shape[1] // heads
    for i in range(len(x)):
        for head in range(heads):
            for k in range(size // 2):
                left, right = head * size + k, head * size + k + size // 2
                angle = i * 10_000.0 ** (-2 * k / size)
                out[i, left] = x[i, left] * math.cos(angle) - x[i, right] * math.sin(angle)
                out[i, right] = x[i, left] * math.sin(angle) + x[i, right] * math.cos(angle)
    return out


def slow_llama(model: Any, listener: Listener) -> Tensor:
    x = embedded(model, listener)
    for block in model.blocks:
        mixer, normed = block.mixer, rms(x)
        if hasattr(mixer, "value"):
            mixed = (listener.positional(mixer.positional) + listener.power(mixer.temporal)) @ (
                normed @ mixer.value.weight.T
            )
        else:
            q, k, v = (normed @ mixer.query_key_value.weight.T).chunk(3, dim=1)
            q, k = slow_rotary(q, mixer.heads), slow_rotary(k, mixer.heads)
            mixed = torch.cat([softmax_attention(*columns) for columns in by_head(mixer.heads, q, k, v)], dim=1)
        h = x + mixed @ block.out.weight.T
        x = h + swiglu(block.ffn, rms(h))
    return x


def content(q: Tensor, k: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """SiLU(q k^T + bias) / (N + 11), causal."""
    scores = cells(len(q), lambda i, j: (q[i] * k[j]).sum())
    return silu(scores + bias).tril() / REACH


def slow_hstu(model: Any, listener: Listener) -> Tensor:
    x = embedded(model, listener)
    for block in model.blocks:
        projected = silu(layer_norm(x, 1e-6) @ block.project)
        positional = listener.positional(block.positional)
        if projected.shape[1] == 2 * x.shape[1]:
            u, v = projected.chunk(2, dim=1)
            mixed = (positional + listener.power(block.temporal)) @ v
        else:
            u, v, q, k = projected.chunk(4, dim=1)
            bias = positional + listener.bucketed(block.temporal)
            heads = [content(q, k, bias) @ v for q, k, v in by_head(block.heads, q, k, v)]
            mixed = torch.cat(heads, dim=1)
        x = x + (u * layer_norm(mixed, 1e-6)) @ block.out.weight.T + block.out.bias
    return x


def slow_alpha(model: Any, listener: Listener) -> Tensor:
    x, dim = embedded(model, listener), model.config.dim
    for block in model.blocks:
        mixer = block.mixer
        projected = silu(rms(x) @ mixer.project)
        width = len(mixer.channels) * dim
        u, v, *query_key = projected[:, :width], *projected[:, width:].split(dim, dim=1)
        channels = []
        for columns in by_head(mixer.heads, v, *query_key):
            value, *qk = columns
            for channel in mixer.channels:
                if channel == "content":
                    channels.append(content(*qk) @ value)
                elif channel == "position":
                    channels.append(listener.positional(mixer.positional) @ value)
                else:
                    is_power = hasattr(mixer.temporal, "decay")
                    time_map = (listener.power if is_power else listener.bucketed)(mixer.temporal)
                    channels.append(time_map @ value)
        joined = (u * rms(torch.cat(channels, dim=1))) @ block.ffn.merge.weight.T + block.ffn.merge.bias + x
        x = swiglu(block.ffn, rms(joined)) + joined
    return x


def slow_esasrec(model: Any, listener: Listener) -> Tensor:
    x = embedded(model, listener)

    def affine(layer: Any, rows: Tensor) -> Tensor:
        return rows @ layer.weight.T + layer.bias

    for block in model.blocks:
        normed = layer_norm(x, 1e-5, block.norm.weight, block.norm.bias)
        q, k, v = affine(block.query_key_value, normed).chunk(3, dim=1)
        heads = [softmax_attention(*columns) for columns in by_head(block.heads, q, k, v)]
        x = x + torch.sigmoid(affine(block.gate, x)) * affine(block.out, torch.cat(heads, dim=1))
        normed = layer_norm(x, 1e-5, block.ffn_norm.weight, block.ffn_norm.bias)
        x = x + torch.sigmoid(affine(block.ffn_gate, x)) * swiglu(block, normed)
    return x


def products(q: Tensor, k: Tensor) -> Tensor:
    """q k^T, causal."""
    return cells(len(q), lambda i, j: (q[i] * k[j]).sum())


def slow_waves(listener: Listener, value: Tensor, gammas: Tensor) -> Tensor:
    """FuXi-Linear's time channel: period 8^k on channels k D / 16 to (k + 1) D / 16, then the cosines."""
    dim, rows = value.shape[1], []
    for n in range(listener.n):
        row = torch.zeros(dim, dtype=value.dtype)
        for channel in range(dim):
            group = next(g for g in range(16) if channel < (g + 1) * dim // 16)
            period, wave = 8 ** (group % 8), math.sin if group < 8 else math.cos
            for m in range(n + 1):
                x, speed = listener.gap(n, m), 2 * math.pi / period
                left = gammas[group % 8] ** (speed * max(x, 0)) * wave(speed * (x % period))
                row = row + left * value[m, channel] * (torch.arange(dim) == channel)
        rows.append(row)
    return torch.stack(rows)


def slow_fuxi_linear(model: Any, listener: Listener) -> Tensor:
    x, dim = embedded(model, listener), model.config.dim
    gammas = torch.sigmoid(model.damping.raw)  # one set for all layers
    for block in model.blocks:
        normed = layer_norm(x, 1e-6)
        projected = silu(normed @ block.project)
        u, (q, k, v) = projected[:, : 3 * dim], projected[:, 3 * dim :].chunk(3, dim=1)
        (rate,) = torch.exp(-torch.log(1 + torch.exp(block.decay.raw)))  # one head: 8 channels
        retained = (cells(listener.n, lambda i, j, g=rate: torch.exp(-g * (i - j + 1))) * products(q, k)) @ v
        v_time, v_position = normed @ block.of_time, normed @ block.of_position
        group = [next(g for g in range(16) if channel < (g + 1) * dim // 16) for channel in range(dim)]
        by_time = block.time_alpha[group] * slow_waves(listener, v_time, gammas) + block.time_beta[group] * v_time
        place = block.positional.weight
        positional = products(place[: listener.n], place[: listener.n]) / 16 @ v_position
        by_position = block.position_alpha * positional + block.position_beta * v_position
        z = u * torch.cat([layer_norm(channel, 1e-6) for channel in (retained, by_time, by_position)], dim=1)
        joined = z @ block.out + x
        first, third = (rms(joined) @ block.gate_and_up).chunk(2, dim=1)
        x = (silu(first) * third) @ block.down + joined
    return x


def embedded(model: Any, listener: Listener) -> Tensor:
    x = listener.vectors * math.sqrt(model.config.dim) + model.positions[: listener.n]
    if getattr(model, "gap", None) is not None:
        x = x + torch.stack([model.gap.weight[listener.bucket(i, i)] for i in range(listener.n)])
    return x


SLOW = {
    "sasrec": slow_sasrec,
    "sasrec-gap": slow_sasrec,
    "llama": slow_llama,
    "llama-gap": slow_llama,
    "llama-beta": slow_llama,
    "esasrec": slow_esasrec,
    "fuxi-linear": slow_fuxi_linear,
    "hstu": slow_hstu,
    "hstu-beta": slow_hstu,
    "fuxi-alpha": slow_alpha,
    "fuxi-beta-frab": slow_alpha,
    "fuxi-beta-aftm": slow_alpha,
    "fuxi-beta-frab-no-position": slow_alpha,
    "fuxi-beta-frab-no-time": slow_alpha,
}


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("name", SLOW)
def test_model_and_every_gradient_equal_the_slow_reference(make_batch, name, heads):
    torch.manual_seed(0)
    model: Any = models.build(replace(CONFIG, name=name, heads=heads)).double()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim:
                parameter.mul_(10 if "project" in key or "positional" in key else 1.5)
    batch = make_batch(LENGTHS)
    vectors = torch.randn(len(batch.item_index), 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(len(batch.item_index), 8, dtype=torch.float64)

    rows = []
    for start, end in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        if start < end:
            times, asked = batch.timestamp[start:end].tolist(), batch.next_timestamp[start:end].tolist()
            x = SLOW[name](model, Listener(vectors[start:end], times, asked))
            rows.append(x / x.norm(dim=1, keepdim=True).clamp(min=1e-6))
    expected, found = torch.cat(rows), model(vectors, batch)
    torch.testing.assert_close(found, expected)

    inputs = dict(model.named_parameters()) | {"vectors": vectors}
    ours = torch.autograd.grad((found * weight).sum(), list(inputs.values()))
    theirs = torch.autograd.grad((expected * weight).sum(), list(inputs.values()), materialize_grads=True)
    for key, mine, slow in zip(inputs, ours, theirs, strict=True):
        torch.testing.assert_close(mine, slow, rtol=1e-6, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("chunk", [4, 64])
def test_fuxi_linear_in_linear_time_equals_its_maps(make_batch, monkeypatch, chunk):
    from fuxi_beta.ops import dispatch

    torch.manual_seed(0)
    config = replace(CONFIG, name="fuxi-linear", dim=64, max_history=200)
    model: Any = models.build(config).double()
    batch = make_batch([200, 3, 0, 77])
    vectors = torch.randn(280, 64, dtype=torch.float64)
    whole = model(vectors, batch)
    monkeypatch.setattr(dispatch, "LONG_FROM_WITHOUT_KERNELS", 0)
    monkeypatch.setattr(ops, "CHUNK", chunk)
    torch.testing.assert_close(model(vectors, batch), whole)
    assert [len(block.decay.raw) for block in model.blocks] == [2, 2]


def test_fuxi_linear_starts_at_the_published_values():
    torch.manual_seed(0)
    model: Any = models.build(replace(CONFIG, name="fuxi-linear", dim=128))
    block = model.blocks[0]
    torch.testing.assert_close(block.decay(), torch.tensor([0.5, 0.25, 0.125, 0.0625]), rtol=0.1, atol=0)
    torch.testing.assert_close(torch.sigmoid(model.damping.raw), torch.full((8,), 0.5), rtol=0, atol=0.03)
    assert not [name for name, _ in model.named_parameters() if "bias" in name]
    for weight in (block.project, block.of_time, block.of_position, block.out, block.gate_and_up, block.down):
        torch.testing.assert_close(weight.std().item(), 0.02, rtol=0.05, atol=0)
    place = block.positional.weight
    near, far = place[3] @ place[5] / 16, place[9] @ place[11] / 16  # a function of the distance
    torch.testing.assert_close(near, far)
    torch.testing.assert_close(place[7] @ place[7] / 16, torch.tensor(1.0))


@pytest.mark.parametrize("heads", [1, 2])
def test_fuxi_beta_frab_without_content_is_fuxi_beta(make_batch, heads):
    """The general block with FuXi-beta's two channels computes what the fast one does, from the same weights."""
    from fuxi_beta.models.fuxi_alpha import FuXiAlpha

    config = replace(CONFIG, heads=heads)
    torch.manual_seed(0)
    fast, general = models.build(config), FuXiAlpha(config, ("position", "time"), "pow")
    general.load_state_dict(fast.state_dict())
    batch = make_batch(LENGTHS)
    vectors = torch.randn(len(batch.item_index), 8)
    torch.testing.assert_close(general(vectors, batch), fast(vectors, batch), rtol=1e-4, atol=1e-5)
