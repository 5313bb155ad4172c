"""FuXi-beta (arXiv 2508.10615) and its peers: train, evaluate and recommend, with torch and pyarrow alone.

The names below are the public API, for scripts and notebooks; `examples/` uses them. They are imported on first use, so
that `import fuxi_beta` costs nothing.

    manifest, songs = write_histories(pq.read_table("plays.parquet"), "shards")
    fitted = fit(manifest, model=ModelConfig(), train=TrainConfig(mode="all"))
    evaluate_leave_one_out(manifest, {"FuXi-beta": fitted.model}, ...)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fuxi_beta.baselines.ease import fit_ease
    from fuxi_beta.baselines.item_knn import fit_item_knn
    from fuxi_beta.baselines.markov import fit_markov
    from fuxi_beta.baselines.popularity import fit_popularity
    from fuxi_beta.config import EvaluateConfig, ModelConfig, TrainConfig
    from fuxi_beta.evaluation.leave_one_out import evaluate_leave_one_out
    from fuxi_beta.evaluation.next_day import evaluate_next_day
    from fuxi_beta.recommender import Recommender
    from fuxi_beta.training.checkpoint import TrainedModel, load_export, save_export
    from fuxi_beta.training.fit import fit
    from pipelines.histories.histories import Histories
    from pipelines.histories.shards import Manifest, read_manifest
    from pipelines.imports.plays import write_histories

_HOMES = {
    "fuxi_beta.baselines.ease": ("fit_ease",),
    "fuxi_beta.baselines.item_knn": ("fit_item_knn",),
    "fuxi_beta.baselines.markov": ("fit_markov",),
    "fuxi_beta.baselines.popularity": ("fit_popularity",),
    "fuxi_beta.config": ("EvaluateConfig", "ModelConfig", "TrainConfig"),
    "fuxi_beta.evaluation.leave_one_out": ("evaluate_leave_one_out",),
    "fuxi_beta.evaluation.next_day": ("evaluate_next_day",),
    "fuxi_beta.recommender": ("Recommender",),
    "fuxi_beta.training.checkpoint": ("TrainedModel", "load_export", "save_export"),
    "fuxi_beta.training.fit": ("fit",),
    "pipelines.histories.histories": ("Histories",),
    "pipelines.histories.shards": ("Manifest", "read_manifest"),
    "pipelines.imports.plays": ("write_histories",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "EvaluateConfig",
    "Histories",
    "Manifest",
    "ModelConfig",
    "Recommender",
    "TrainConfig",
    "TrainedModel",
    "evaluate_leave_one_out",
    "evaluate_next_day",
    "fit",
    "fit_ease",
    "fit_item_knn",
    "fit_markov",
    "fit_popularity",
    "load_export",
    "read_manifest",
    "save_export",
    "write_histories",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fuxi_beta' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
