"""The systems by name. Each model file registers its own; `fuxi_beta.models` imports every file of the folder."""

from collections.abc import Callable
from dataclasses import dataclass

from fuxi_beta.config import ModelConfig
from fuxi_beta.models.base import SequenceModel


@dataclass(frozen=True)
class System:
    """How a system is built, and whether it reads t_{i+1}, the time of the event that it predicts."""

    build: Callable[[ModelConfig], SequenceModel]
    takes_time: bool


SYSTEMS: dict[str, System] = {}


def register(name: str, build: Callable[[ModelConfig], SequenceModel], *, takes_time: bool) -> None:
    """Register a system as `name` (lower case, hyphens), which becomes a value of `model.name`.

    Raises ValueError if another system has that name.
    """
    if name in SYSTEMS:
        raise ValueError(f"two systems are called {name}: give one of them another name")
    SYSTEMS[name] = System(build, takes_time)
