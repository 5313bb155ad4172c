"""Processes of one thread that are the ranks of a process group on loopback, without a cluster."""

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from jobs.training.ray import WORKER_ENVIRONMENT


def in_ranks(work: Callable[[int], Any], ranks: int, *, together: bool = True) -> list[Any]:
    """Do it in so many new processes, with the rank as argument; returns each one's result, which JSON can hold.

    together: as a process group; else they know nothing of each other.
    """
    os.environ |= WORKER_ENVIRONMENT
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        torch.multiprocessing.spawn(_begin, args=(work, ranks, together, folder), nprocs=ranks)
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(ranks)]


def _begin(rank: int, work: Callable[[int], Any], ranks: int, together: bool, folder: str) -> None:
    torch.set_num_threads(1)
    if together:
        warnings.simplefilter("ignore")  # of TorchRec, about its own use of PyTorch
        logging.disable(logging.WARNING)
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    Path(folder, f"{rank}.json").write_text(json.dumps(work(rank)))
    if together:
        dist.barrier()
        dist.destroy_process_group()
