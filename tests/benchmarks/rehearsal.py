"""Small runs of the GPU benchmarks in Triton's interpreter, so that none of them first runs on a GPU.

`test_gpu_step` calls `TRITON_INTERPRET=1 python rehearsal.py`. The speeds have no meaning.
"""

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import gpu_loss, gpu_mixer, gpu_retrieval, gpu_step
from benchmarks.lib import gpu
from benchmarks.lib.industrial_shards import Scale
from benchmarks.lib.timing import report
from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.ops import reference

SCALE = Scale(listeners=64, songs=90, mean=6, longest=13, row_group_events=100)
MODEL = ModelConfig(dim=16, layers=1, heads=2, ffn_multiply=2, max_history=12, dropout=0.2)
TRAIN = TrainConfig(mode="all", negatives=4, batch_tokens=150)
CASE = gpu_step.Case("tiny", TRAIN, MODEL, device="cpu", kernels="triton", backend="eager", steps=1, rounds=1)


def main() -> None:
    """Every measuring function once."""
    gpu_step.run([CASE], SCALE)
    numbers: dict[str, Any] = {"device": "cpu", "dim": 16}
    limits = gpu.limits(copied=1 << 20, size=64, device="cpu")
    assert min(limits) > 0
    row = gpu_mixer.measured(3, 9, rounds=1, limits=limits, dtype=torch.float32, backend="eager", **numbers)
    plain = ("plain torch", reference.sampled_softmax)
    rows = gpu_loss.measure(12, 4, torch.float32, plain, 1, limits=limits, songs=90, **numbers)
    work = gpu_retrieval.Work(90, 20, batch=16, baseline_listeners=12, baseline_batch=8, **numbers)
    print(gpu.json_line("gpu_mixer", "", rows=[row], kernels=[]))
    report("gpu_loss", rows, ours="ours", baseline="plain torch")
    report("gpu_retrieval", gpu_retrieval.measure(work, 1, limits=limits), ours="ours", baseline="blocks and topk")


if __name__ == "__main__":
    main()
