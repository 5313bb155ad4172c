"""FuXi-beta written straight from the paper on padded batches: the baseline of the benchmarks.

Every listener is padded to N, both maps are computed in every layer with `pow`, and the loss gathers and normalises
the rows of each position's negatives, for positions of padding too. It is plain and not slowed down on purpose: one
fused AdamW, no anomaly detection.

Shapes: `B` listeners, `N` padded length, `D` width, `K` negatives.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.data.batches import Batch


class NaiveBlock(nn.Module):
    """AFTM and MFFN on padded tensors."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, hidden = config.dim, config.dim * config.ffn_multiply
        self.rate = config.dropout
        self.project = nn.Parameter(torch.randn(dim, 3 * dim) * 0.02)
        self.lags = nn.Parameter(torch.randn(2 * config.max_history - 1) * 0.02)
        self.scale, self.decay = nn.Parameter(torch.tensor(0.1)), nn.Parameter(torch.tensor(0.6))
        self.merge = nn.Linear(2 * dim, dim)
        self.gate, self.up = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor, gap: Tensor, causal: Tensor) -> Tensor:
        """x: [B, N, D]; gap: seconds [B, N, N]; causal: bool [N, N]."""
        n, dim = x.shape[1:]
        gate, value = F.silu(F.rms_norm(x, (dim,)) @ self.project).split([2 * dim, dim], dim=-1)
        place = torch.arange(n, device=x.device)
        by_position = self.lags[place[None, :] - place[:, None] + n - 1] * causal
        by_time = self.scale * (1 + gap).pow(-self.decay) * causal
        mixed = torch.cat([by_position @ value, by_time @ value], dim=-1)
        joined = self.merge(F.dropout(gate * F.rms_norm(mixed, (2 * dim,)), self.rate)) + x
        inner = F.dropout(F.rms_norm(joined, (dim,)), self.rate)
        return self.down(F.silu(self.gate(inner)) * self.up(inner)) + joined


class NaiveTrainer:
    """The whole step: embedding, encoder, sampled softmax, AdamW on everything."""

    def __init__(self, config: ModelConfig, train: TrainConfig, songs: int) -> None:
        self.config, self.train, self.songs = config, train, songs
        self.table = nn.Embedding(songs + 1, config.dim, padding_idx=0)
        self.positions = nn.Parameter(torch.randn(config.max_history, config.dim) * 0.02)
        self.blocks = nn.ModuleList(NaiveBlock(config) for _ in range(config.layers))
        self.parameters = [self.table.weight, self.positions, *self.blocks.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=train.lr, betas=train.betas, weight_decay=0, fused=True)

    def padded(self, batch: Batch, values: Tensor) -> Tensor:
        """Packed [T] -> [B, N]."""
        cells = values.new_zeros(batch.num_listeners, self.config.max_history)
        cells[batch.listener, batch.position] = values
        return cells

    def encode(self, batch: Batch) -> Tensor:
        """[B, N, D], unit rows."""
        n = self.config.max_history
        items = self.padded(batch, batch.item_index)
        gap = self.padded(batch, batch.next_timestamp)[:, :, None] - self.padded(batch, batch.timestamp)[:, None, :]
        gap = gap.clamp(min=0).float()
        causal = torch.ones(n, n, dtype=torch.bool).tril()
        x = F.dropout(self.table(items) * self.config.dim**0.5 + self.positions, self.config.dropout)
        for block in self.blocks:
            x = block(x, gap, causal)
        return F.normalize(x, dim=-1)

    def encode_and_backward(self, batch: Batch) -> None:
        """The encoder alone."""
        self.optimizer.zero_grad()
        self.encode(batch).sum().backward()

    def step(self, batch: Batch) -> float:
        """One step; returns the mean loss over positions with a target."""
        self.optimizer.zero_grad()
        states = self.encode(batch)
        target = self.padded(batch, batch.target)
        negatives = torch.randint(1, self.songs + 1, (*target.shape, self.train.negatives))
        positive = (states * F.normalize(self.table(target), dim=-1)).sum(-1, keepdim=True)
        negative = torch.einsum("bnd,bnkd->bnk", states, F.normalize(self.table(negatives), dim=-1))
        negative = negative.masked_fill(negatives == target[:, :, None], -torch.inf)
        logits = torch.cat([positive, negative], dim=-1) / self.train.temperature
        loss = ((logits.logsumexp(-1) - logits[:, :, 0]) * (target > 0)).sum() / (target > 0).sum()
        loss.backward()
        self.optimizer.step()
        return loss.item()
