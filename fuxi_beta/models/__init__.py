"""Sequence models behind one interface (`base.SequenceModel`), a file for each family.

| file         | systems                                                                                |
| ------------ | -------------------------------------------------------------------------------------- |
| `fuxi_beta`  | fuxi-beta, with any of the paper's functions of elapsed time                           |
| `fuxi_alpha` | fuxi-alpha, and the steps between it and FuXi-beta: each channel can be taken away     |
| `fuxi_linear` | fuxi-linear, FuXi-Linear as published                                                 |
| `hstu`       | hstu, hstu-beta                                                                        |
| `llama`      | llama, llama-beta, llama-gap                                                           |
| `esasrec`    | esasrec, attention in LiGR layers                                                      |
| `sasrec`     | sasrec, sasrec-gap                                                                     |
| `retnet`, `flash`, `gru4rec`, `narm` | one each                                                       |

A new file in this folder that registers a system is imported automatically (CONTRIBUTING.md).
"""

import importlib
import pkgutil

from fuxi_beta.config import ModelConfig
from fuxi_beta.models.base import SequenceModel
from fuxi_beta.models.registry import SYSTEMS, System, register

for _module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")


def build(config: ModelConfig) -> SequenceModel:
    """The network that `config` describes, with new weights from torch's random state. ValueError if it is invalid."""
    return system(config.name).build(config)


def system(name: str) -> System:
    """A system by its name. ValueError that lists the names for an unknown one."""
    if name not in SYSTEMS:
        raise ValueError(f"model.name is {name!r}: it must be one of {', '.join(sorted(SYSTEMS))}")
    return SYSTEMS[name]


def takes_time(name: str) -> bool:
    """Whether a system reads t_{i+1}; False for a baseline that is not a sequence model."""
    return name in SYSTEMS and SYSTEMS[name].takes_time


__all__ = ["SYSTEMS", "SequenceModel", "System", "build", "register", "system", "takes_time"]
