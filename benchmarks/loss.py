"""The sampled softmax, forward and backward: `python -m benchmarks.loss [--quick]`.

25,600 positions with 128 negatives each, D 50 and 256. Ours is the fused kernel; the baseline gathers the rows of all
negatives and normalises each, as the authors' code does, so that a row is normalised as often as it is drawn. Both
compute the gradient of the raw table.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.lib.timing import Row, interleaved, report
from fuxi_beta import ops
from fuxi_beta.models.base import l2_normalise

POSITIONS, NEGATIVES, TEMPERATURE = 25_600, 128, 0.05
MEMORY_FLOATS = 2**29  # of the baseline's gathered rows: larger cases take fewer positions


def gathered(states: Tensor, vectors: Tensor, target: Tensor, negatives: Tensor, masked: Tensor) -> Tensor:
    """The baseline."""
    positive = (states * F.normalize(vectors[target], dim=-1)).sum(1, keepdim=True)
    negative = torch.einsum("pd,pkd->pk", states, F.normalize(vectors[negatives], dim=-1))
    logits = torch.cat([positive, negative.masked_fill(masked, -torch.inf)], dim=1) / TEMPERATURE
    return (logits.logsumexp(1) - logits[:, 0]).sum()


def measure(songs: int, dim: int, rounds: int) -> Row:
    """One size of the catalogue."""
    positions = min(POSITIONS, MEMORY_FLOATS // (NEGATIVES * dim))
    torch.manual_seed(0)
    states = l2_normalise(torch.randn(positions, dim)).requires_grad_()
    vectors = torch.randn(songs, dim, requires_grad=True)
    target, negatives = torch.randint(songs, (positions,)), torch.randint(songs, (positions, NEGATIVES))
    masked = negatives == target[:, None]

    def ours() -> None:
        loss = ops.sampled_softmax(states, l2_normalise(vectors), target, negatives, masked, TEMPERATURE)
        torch.autograd.grad(loss, [states, vectors])

    def baseline() -> None:
        torch.autograd.grad(gathered(states, vectors, target, negatives, masked), [states, vectors])

    times = interleaved({"ours": ours, "baseline": baseline}, rounds=rounds)
    return Row(f"{songs:,} songs x {dim}, {positions:,} positions", times["ours"], times["baseline"])


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds of the two smaller cases")
    options = parser.parse_args()
    print(f"kernels: {ops.describe()}")
    cases = ((3706, 50), (26_744, 50)) if options.quick else ((3706, 50), (26_744, 50), (26_744, 256), (476_544, 256))
    rows = [measure(songs, dim, 3 if options.quick else 7) for songs, dim in cases]
    report("loss", rows, ours="fused", baseline="gather and normalise")


if __name__ == "__main__":
    main()
