"""The position of a training: sums over steps, a thinned curve, and its file."""

from pathlib import Path

import numpy as np
import pytest

from jobs.training.position import MAX_CURVE_POINTS, CheckpointPosition


def test_the_loss_curve_is_thinned_evenly_and_positions_survive_their_file(tmp_path: Path) -> None:
    from fuxi_beta.training.trainer import StepResult

    position = CheckpointPosition()
    for step in range(1, 1001):
        position.took_step(StepResult(loss=1 / step, positions=2, events=5, listeners=3), seconds=0.1)
    position.finished_epoch()
    assert len(position.curve) <= MAX_CURVE_POINTS
    assert np.unique(np.diff([step for step, _ in position.curve])).tolist() == [position.stride]
    assert (position.samples, position.events, position.epoch, position.step) == (3000, 5000, 1, 0)
    assert position.epoch_losses == [pytest.approx(sum(1 / s for s in range(1, 1001)) / 1000)]
    position.write(str(tmp_path))
    assert CheckpointPosition.read(str(tmp_path)) == position
