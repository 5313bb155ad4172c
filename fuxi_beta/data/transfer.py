"""Batches from the reader to the device that learns from them, without either waiting for the other.

On a GPU the reader's thread puts a batch into page-locked memory, from which a stream of its own copies it while the
steps before are still computed: whoever launches the steps is ahead of the GPU by a step or two
(`fuxi_beta.training.trainer.Trainer.learn`), so that a copy has that long to arrive.
"""

from collections.abc import Iterable, Iterator

import torch

from fuxi_beta.data.batches import Batch


def pinned(batches: Iterable[Batch], device: torch.device | str) -> Iterator[Batch]:
    """The same batches in page-locked memory where a GPU will ask for them; for the thread that makes them."""
    for batch in batches:
        yield batch.pin_memory() if torch.device(device).type == "cuda" else batch


def to_device(batches: Iterable[Batch], device: torch.device | str) -> Iterator[Batch]:
    """The same batches on a device. From memory that is not page-locked too, but then the host waits for each copy."""
    device = torch.device(device)
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    copies = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(copies):
            moved = batch.to(device)
        steps = torch.cuda.current_stream(device)
        steps.wait_stream(copies)
        moved.record_stream(steps)  # its memory is not given to another batch before these steps are done
        yield moved
