"""A worker that is told to leave, without Ray's processes: tests/jobs/stages/test_train.py has the whole."""

import itertools
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fuxi_beta.training.fit import all_batches, new_trainer
from jobs.stages import train
from jobs.training import notice, worker
from jobs.training.position import CheckpointPosition

from ..conftest import DAY_ONE, Deployment


@pytest.fixture
def ended() -> Iterator[list[int]]:
    """A worker's main thread as it is set up; yields what the handler that Ray has set was called with."""
    called: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: called.append(number))
    notice._state.clear()
    notice.SigtermIsANotice().after_init_train_context()
    yield called
    signal.signal(signal.SIGTERM, before)
    notice._state.clear()


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # Python runs the handler between two instructions


def test_sigterm_is_a_notice_once_and_only_while_there_are_steps(ended: list[int]) -> None:
    send(signal.SIGTERM)
    assert ended == [signal.SIGTERM] and "told" not in notice._state
    notice.heed()
    send(signal.SIGTERM)
    assert ended == [signal.SIGTERM] and notice.told()
    send(signal.SIGTERM)
    assert ended == [signal.SIGTERM] * 2


def test_a_worker_takes_no_step_behind_the_one_in_which_it_was_told(
    deployment: Any, ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    house: Deployment = deployment("model.dim=8", "model.layers=1", "train.batch_size=8", "train.min_listeners=1")
    manifest, day = house.sessionized(DAY_ONE), house.day(DAY_ONE)
    loop = train._loop_config(day, manifest, parent="")
    trainer = new_trainer(manifest, loop.candidates, model=loop.model, train=loop.train, plays=loop.plays)
    batches = all_batches(manifest, model=loop.model, train=loop.train, data_end=loop.data_end)
    notice.heed()
    position, source = CheckpointPosition(), batches.epoch(0)

    def read() -> Iterator[Any]:
        for number, batch in enumerate(source):
            if number == 2:
                send(signal.SIGTERM)  # the third batch is there already
            yield batch

    monkeypatch.setattr(notice, "told", lambda: "told" in notice._state)  # outside of Ray no node is drained
    behind = read()
    assert worker._take_steps(trainer, itertools.islice(behind, 4), position, None)
    assert position.step == 3 and len(list(behind)) == batches.steps_per_epoch - 3 > 0
    assert not ended
