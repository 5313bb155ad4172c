"""A day that is killed again and again gives what the same day gives undisturbed, and leaves nothing behind."""

import datetime as dt
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lib.chaos import leftovers, processes
from benchmarks.lib.chaos.disturbances import SPELLS, STAGES, VICTIMS, Disturbance, draw_round
from benchmarks.lib.chaos.inspect_day import look
from benchmarks.lib.chaos.outcome import differences
from benchmarks.lib.chaos.places import LocalPlace
from benchmarks.lib.chaos.runs import run
from benchmarks.lib.processes import adopt_orphans
from jobs.config import load_config
from jobs.day import open_day
from tests.log_lines import lines as log_lines

DAY_TWO = dt.date(2026, 1, 27)  # of the fixture `two_days`
KILLS = [
    Disturbance("jvm", "sessionize", 0.9),
    Disturbance("driver", "train", 0.8),
    Disturbance("ray worker", "recommend", 0.1),
]


@pytest.fixture
def place(two_days: Any) -> Iterator[LocalPlace]:
    """The workspace of two days as it was after the first."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as short:  # Ray's sockets need a short path
        settings = two_days.config.model_dump(mode="json")
        place = LocalPlace(Path(short, "l"), settings, has_disk=False, logs=f"{short}/l/disk/workspace/logs")
        shutil.copytree(two_days.after_day_one, place.root / "kept")
        place.restore()
        adopt_orphans()
        yield place
        adopt_orphans(False)


def test_a_day_that_is_killed_three_times_is_as_if_it_had_not_been_and_leaves_nothing(
    two_days: Any, place: LocalPlace
) -> None:
    usual, pending, runs = two_days.results[1].seconds | {"sessionize": 8.0}, list(KILLS), []
    memory, known = leftovers.in_memory(), processes.children()
    while len(runs) < 8 and not (runs and runs[-1].code == 0):
        runs.append(run(place, str(DAY_TWO), pending, usual=usual, limit_s=150))
    said = "\n".join(map(str, runs))
    assert all(log_lines("\n".join(one.output)) for one in runs)  # nothing else is written, whatever dies
    assert runs[-1].code == 0 and not any(one.hung for one in runs), said
    assert not processes.outliving(known, seconds=10), said
    assert sum(len(one.happened) for one in runs) >= 2, said  # a worker of Ray may be gone in an instant
    wanted = look(open_day(two_days.config, DAY_TWO))
    found = look(open_day(load_config(str(place.config_file), environment={}), DAY_TWO))
    assert not differences(wanted.outcome, found.outcome), said
    assert not found.damaged and not found.left, said
    assert not leftovers.of_host(place.scratch), said
    assert not {name for name in leftovers.in_memory() - memory if name.startswith("plasma")}, said


def test_what_is_drawn_depends_on_the_seed_alone_and_comes_in_the_order_of_the_stages() -> None:
    for spell in {name for spells in SPELLS.values() for name in spells}:
        drawn = [draw_round(random.Random(3), kills=50, spell=spell) for _ in range(2)]
        assert drawn[0] == drawn[1] != draw_round(random.Random(4), kills=50, spell=spell)
        places = [(STAGES.index(one.stage), one.share) for one in drawn[0]]
        assert places == sorted(places)
        assert {one.what for one in drawn[0] if one.is_kill} == set(VICTIMS)
        assert [one.what for one in drawn[0] if not one.is_kill] == [spell]
    assert all(one.is_kill for one in draw_round(random.Random(3), kills=5, spell=None))


def test_a_difference_is_named_with_how_much_of_it() -> None:
    wanted = {"recommendations": ["a", "b", "c"], "histories": "1f", "chosen model": "2"}
    assert not differences(wanted, wanted)
    lines = differences(wanted, {**wanted, "recommendations": ["a", "b", "d", "e"], "histories": "2f"})
    assert lines == [
        "recommendations: 3 rows wanted, 4 found: 1 missing, 2 too many, for example c",
        "histories: '1f' wanted, '2f' found",
    ]
