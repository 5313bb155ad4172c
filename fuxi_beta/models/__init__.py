"""Sequence models behind one interface (`base.SequenceModel`), a file for each family.

| file         | systems                                                                          | reads t_{i+1} |
| ------------ | -------------------------------------------------------------------------------- | ------------- |
| `fuxi_beta`  | fuxi-beta                                                                        | yes           |
| `fuxi_alpha` | fuxi-alpha, the steps between it and FuXi-beta, other functions of elapsed time  | yes           |
| `hstu`       | hstu, hstu-beta                                                                  | yes           |
| `llama`      | llama, llama-beta (yes), llama-gap (yes)                                         | no            |
| `sasrec`     | sasrec, sasrec-gap (yes)                                                         | no            |
| `retnet`, `flash`, `gru4rec`, `narm` | one each                                                 | no            |
"""

from collections.abc import Callable
from typing import cast

from fuxi_beta.config import ModelConfig, System
from fuxi_beta.models.base import SequenceModel
from fuxi_beta.models.flash import FLASH
from fuxi_beta.models.fuxi_alpha import Channel, FuXiAlpha
from fuxi_beta.models.fuxi_beta import FuXiBeta
from fuxi_beta.models.gru4rec import GRU4Rec
from fuxi_beta.models.hstu import HSTU, SummedBlock
from fuxi_beta.models.llama import LLaMa, SummedMaps
from fuxi_beta.models.narm import NARM
from fuxi_beta.models.retnet import RetNet
from fuxi_beta.models.sasrec import SASRec

_WITHOUT_CONTENT: tuple[Channel, ...] = ("position", "time")


def _fuxi_beta(config: ModelConfig) -> SequenceModel:
    fast = config.temporal in {"pow", "zero"}
    return FuXiBeta(config) if fast else FuXiAlpha(config, _WITHOUT_CONTENT, config.temporal)


SYSTEMS: dict[System, Callable[[ModelConfig], SequenceModel]] = {
    "fuxi-beta": _fuxi_beta,
    "fuxi-alpha": FuXiAlpha,
    "fuxi-beta-frab": lambda config: FuXiAlpha(config, temporal="pow"),
    "fuxi-beta-aftm": lambda config: FuXiAlpha(config, _WITHOUT_CONTENT),
    "fuxi-beta-frab-no-position": lambda config: FuXiAlpha(config, ("time", "content"), "pow"),
    "fuxi-beta-frab-no-time": lambda config: FuXiAlpha(config, ("position", "content")),
    "hstu": HSTU,
    "hstu-beta": lambda config: HSTU(config, SummedBlock),
    "llama": LLaMa,
    "llama-beta": lambda config: LLaMa(config, SummedMaps),
    "llama-gap": lambda config: LLaMa(config, gap=True),
    "sasrec": SASRec,
    "sasrec-gap": lambda config: SASRec(config, gap=True),
    "retnet": RetNet,
    "flash": FLASH,
    "gru4rec": GRU4Rec,
    "narm": NARM,
}
"""How each system is made."""

TAKES_TIME: frozenset[System] = frozenset(
    cast(System, name)
    for name in SYSTEMS
    if name.startswith(("fuxi", "hstu")) or name.endswith(("-beta", "-gap"))
    if name != "fuxi-beta-frab-no-time"
)
"""Systems that read the time of the event they predict."""


def build(config: ModelConfig) -> SequenceModel:
    """The network that `config` describes, with fresh weights from torch's random state. ValueError if it cannot be."""
    return SYSTEMS[config.name](config)
