"""FuXi-beta (arXiv 2508.10615) and its peers: train, evaluate and recommend, with torch and pyarrow alone.

The public API, for scripts and notebooks (see `examples/`). Names are imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fuxi_beta.baselines.item_knn import fit_item_knn as fit_item_knn
    from fuxi_beta.baselines.markov import fit_markov as fit_markov
    from fuxi_beta.baselines.popularity import fit_popularity as fit_popularity
    from fuxi_beta.config import EvaluateConfig as EvaluateConfig
    from fuxi_beta.config import ModelConfig as ModelConfig
    from fuxi_beta.config import TrainConfig as TrainConfig
    from fuxi_beta.evaluation.leave_one_out import evaluate_leave_one_out as evaluate_leave_one_out
    from fuxi_beta.evaluation.next_day import evaluate_next_day as evaluate_next_day
    from fuxi_beta.models import SequenceModel as SequenceModel
    from fuxi_beta.models import register as register
    from fuxi_beta.presets import preset as preset
    from fuxi_beta.recommender import Recommender as Recommender
    from fuxi_beta.training.checkpoint import TrainedModel as TrainedModel
    from fuxi_beta.training.checkpoint import load_export as load_export
    from fuxi_beta.training.checkpoint import save_export as save_export
    from fuxi_beta.training.fit import fit as fit
    from pipelines.histories.histories import Histories as Histories
    from pipelines.histories.shards import Manifest as Manifest
    from pipelines.histories.shards import read_manifest as read_manifest
    from pipelines.imports.plays import write_histories as write_histories

_MODULES = {
    "fuxi_beta.baselines.item_knn": "fit_item_knn",
    "fuxi_beta.baselines.markov": "fit_markov",
    "fuxi_beta.baselines.popularity": "fit_popularity",
    "fuxi_beta.config": "EvaluateConfig ModelConfig TrainConfig",
    "fuxi_beta.evaluation.leave_one_out": "evaluate_leave_one_out",
    "fuxi_beta.evaluation.next_day": "evaluate_next_day",
    "fuxi_beta.models": "SequenceModel register",
    "fuxi_beta.presets": "preset",
    "fuxi_beta.recommender": "Recommender",
    "fuxi_beta.training.checkpoint": "TrainedModel load_export save_export",
    "fuxi_beta.training.fit": "fit",
    "pipelines.histories.histories": "Histories",
    "pipelines.histories.shards": "Manifest read_manifest",
    "pipelines.imports.plays": "write_histories",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fuxi_beta' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
