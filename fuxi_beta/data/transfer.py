"""Transfer of batches from the reader to the training device, without either waiting for the other.

For a GPU the reader's thread puts a batch into page-locked memory, from which a separate stream copies it while earlier
steps are still running: steps are launched one or two ahead of the GPU (`fuxi_beta.training.trainer.Trainer.learn`),
which leaves time for the copy.
"""

from collections.abc import Iterable, Iterator

import torch

from fuxi_beta.data.batches import Batch


def pinned(batches: Iterable[Batch], device: torch.device | str) -> Iterator[Batch]:
    """The same batches, in page-locked memory if the device is a GPU; to be called by the thread that reads them."""
    for batch in batches:
        yield batch.pin_memory() if torch.device(device).type == "cuda" else batch


def to_device(batches: Iterable[Batch], device: torch.device | str) -> Iterator[Batch]:
    """The same batches on a device. From memory that is not page-locked the host waits for each copy."""
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
        moved.record_stream(steps)  # so that its memory is not reused before these steps are done
        yield moved
