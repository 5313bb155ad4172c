"""A training worker that is told to leave: by SIGTERM, or by a drain of its node. Imported where Ray Train is used.

Ray ends a worker at once that gets SIGTERM. Here the worker takes note and goes on to the end of its step; all ranks
then save that step, and Ray Train replaces them as after a drain: which is no failure (`FailureConfig.max_failures`).
"""

import signal
import time
from types import FrameType
from typing import Any, NoReturn

import ray
import ray.train
from ray.train.v2._internal.execution.callback import WorkerCallback
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2.api.preemption import PreemptionInfo
from typing_extensions import override

REPLACED_WITHIN_S = 60.0
"""For Ray Train to take a checkpoint over, and again to end a worker that then says that it leaves; 1 s is usual."""

_state: dict[str, Any] = {}
"""Of this process: `heeding` while it trains, `told` from SIGTERM on, `before`: what SIGTERM did without this."""


class SigtermIsANotice(WorkerCallback):
    """Sets the handler of SIGTERM in a worker's main thread, where alone Python lets it be set; training has another.

    Later than the worker's process sets Ray's own.
    """

    @override
    def after_init_train_context(self) -> None:
        _state["before"] = signal.signal(signal.SIGTERM, _on_sigterm)


def heed() -> None:
    """SIGTERM is a notice from now on: there are steps after which `told` is asked."""
    _state["heeding"] = True


def told() -> bool:
    """Whether this worker was told to leave, or its cluster that any of its nodes will go."""
    return "told" in _state or get_train_context().preemption_context.preemption_info is not None


def wait_for_commit() -> None:
    """Wait until Ray Train has taken over the checkpoint that all ranks have reported."""
    committed = ray.train.CheckpointConsistencyMode.COMMITTED
    ray.train.get_all_reported_checkpoints(consistency_mode=committed, timeout_s=REPLACED_WITHIN_S)


def leave() -> NoReturn:
    """Have Ray Train replace all workers. Every rank calls this behind `wait_for_commit`.

    Neither a return nor an error would do: the first ends the training, the second counts as a failure.
    """
    context = get_train_context()
    node, rank = ray.get_runtime_context().get_node_id(), context.get_world_rank()
    now = PreemptionInfo(deadline_ms=int(time.time() * 1000), preempted_node_to_ranks={node: [rank]})
    until = time.monotonic() + REPLACED_WITHIN_S
    while time.monotonic() < until:
        context.preemption_context.preemption_info = now  # again, for a drain may have written a later deadline
        time.sleep(0.1)
    raise RuntimeError(f"Ray Train did not replace a worker within {REPLACED_WITHIN_S:.0f} s after it had saved")


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    """Take note, but end at once as without this where nothing is trained, or on the second signal."""
    if "heeding" in _state and "told" not in _state:
        _state["told"] = True
    elif callable(before := _state["before"]):
        before(number, frame)
