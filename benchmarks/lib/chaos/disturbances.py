"""What happens to a run of a day, and when: drawn from a seed, so that a chaos run can be made again."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

STAGES = ("sessionize", "hits", "train", "evaluate", "promote", "recommend", "report")

VICTIMS = {
    "driver": STAGES,
    "jvm": ("sessionize",),
    "spark worker": ("sessionize",),
    "raylet": ("train", "recommend"),
    "ray worker": ("train", "recommend"),
}
"""Who is killed, and in which stages it has something to do."""

DISK_FULL, READ_ONLY, OUTAGE, TWIN, WAITING_TWIN = "disk full", "read-only", "outage", "second run", "second run waits"
SPELLS = {
    "local": (DISK_FULL, READ_ONLY, TWIN, WAITING_TWIN),
    "s3": (OUTAGE, TWIN, WAITING_TWIN),
}
"""What else happens, by the place of the workspace."""
_BUSY = ("sessionize", "train", "recommend")


@dataclass(frozen=True)
class Disturbance:
    """What happens once `share` of a stage's usual seconds is over."""

    what: str  # a key of VICTIMS, or one of SPELLS
    stage: str
    share: float

    @property
    def is_kill(self) -> bool:
        """Whether a process gets SIGKILL."""
        return self.what in VICTIMS

    def __str__(self) -> str:
        """For example "driver at 40% of train"."""
        return f"{self.what} at {self.share:.0%} of {self.stage}"


def draw_round(draw: random.Random, *, kills: int, spell: str | None, only: Sequence[str] = ()) -> list[Disturbance]:
    """The disturbances of one day, in the order of the stages: a run goes on where the last one stopped.

    spell: of SPELLS, besides the kills; None for kills alone. only: victims to draw from; all by default.
    """
    victims = [name for name in VICTIMS if not only or name in only]
    drawn = [_draw(draw, draw.choice(victims)) for _ in range(kills)]
    if spell:
        drawn.append(_draw(draw, spell))
    return sorted(drawn, key=lambda one: (STAGES.index(one.stage), one.share))


def _draw(draw: random.Random, what: str) -> Disturbance:
    stage = draw.choice(VICTIMS.get(what, _BUSY))
    return Disturbance(what, stage, round(draw.random(), 2))
