"""Resuming where Ray Train cannot: its driver was killed while it wrote its list of checkpoints.

Ray Train overwrites that list in place. A truncated list stops every later run of the same name, although the
checkpoints themselves are complete.
"""

import json

from jobs.training.position import POSITION_FILE
from pipelines import storage

SNAPSHOT = "checkpoint_manager_snapshot.json"
METADATA, PART = ".metadata", "__{rank}_0.distcp"  # of torch.distributed.checkpoint


def recover(run_uri: str) -> str:
    """The newest complete checkpoint if Ray Train's list is missing or truncated (then removed), else empty."""
    snapshot = storage.join(run_uri, SNAPSHOT)
    if storage.exists(snapshot):
        if _is_json(storage.read_bytes(snapshot)):
            return ""
        storage.delete_files([snapshot])
    for name in reversed(storage.list_folders(run_uri)):
        folder = storage.join(run_uri, name)
        if name.startswith("checkpoint_") and _is_complete(folder):
            return folder
    return ""


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


def _is_complete(folder: str) -> bool:
    """Whether position, metadata and the parts of all ranks are there."""
    position, metadata = (storage.join(folder, name) for name in (POSITION_FILE, METADATA))
    if not (storage.exists(position) and storage.exists(metadata) and _is_json(storage.read_bytes(position))):
        return False
    workers = storage.read_json(position)["workers"]
    return all(storage.exists(storage.join(folder, PART.format(rank=rank))) for rank in range(workers))
