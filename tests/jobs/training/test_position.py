"""The position of a training: sums over steps, a thinned curve, and its file."""

from pathlib import Path

import numpy as np
import pytest

from jobs.training.position import MAX_CURVE_POINTS, SPIKE_STEPS, CheckpointPosition


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


def after(steps: int, *, loss: float = 2.0) -> CheckpointPosition:
    from fuxi_beta.training.trainer import StepResult

    position = CheckpointPosition()
    for _ in range(steps):
        position.took_step(StepResult(loss=loss, positions=2, events=5, listeners=3), seconds=0.1)
    return position


@pytest.mark.parametrize(
    ("steps", "loss", "factor", "spikes"),
    [
        (SPIKE_STEPS, 6.1, 3.0, True),
        (SPIKE_STEPS, 6.0, 3.0, False),  # not more than that
        (SPIKE_STEPS - 1, 600.0, 3.0, False),  # too few to tell
        (SPIKE_STEPS, 600.0, 0.0, False),  # off
        (5 * SPIKE_STEPS, 6.1, 3.0, True),
    ],
)
def test_a_spike_is_measured_against_the_median_of_the_steps_before(
    tmp_path: Path, steps: int, loss: float, factor: float, spikes: bool
) -> None:
    after(steps).write(str(tmp_path))
    for position in (after(steps), CheckpointPosition.read(str(tmp_path))):  # and behind a resumption
        said = position.spike(loss, factor)
        assert bool(said) == spikes and ("more than 3 times the 2 of" in said) == spikes


def test_a_return_skips_what_is_behind_the_checkpoint_and_keeps_count() -> None:
    position = after(4)
    position.go_on_at(7, after(6), "nan")
    assert (position.step, position.steps, position.samples) == (7, 7, 12)
    assert position.rollbacks == [{"step": 7, "to": 4, "reason": "nan"}]


def test_an_epoch_that_was_skipped_whole_has_the_loss_of_the_one_before() -> None:
    position = after(3)
    position.finished_epoch()
    position.go_on_at(3, position, "nan")
    position.finished_epoch()
    assert position.epoch_losses == [2.0, 2.0]
