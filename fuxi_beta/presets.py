"""Published settings by name, and the daily one.

The paper's runs (section 6.1.4 and the authors' configurations): AdamW on all parameters, item table included, 101
epochs without selection, the whole catalogue as negatives. Where paper and code are silent, the value is marked.
"""

from dataclasses import dataclass, replace

from fuxi_beta.config import ModelConfig, TrainConfig


@dataclass(frozen=True)
class Preset:
    """One setting: the network and how it is fitted."""

    model: ModelConfig
    train: TrainConfig


_PAPER = TrainConfig(
    protocol="leave_one_out",
    mode="all",
    min_completion=0,
    epochs=101,
    batch_size=128,
    lr=1e-3,
    betas=(0.9, 0.98),
    weight_decay=0.0,
    item_optimizer="adamw",
    negatives=128,
    temperature=0.05,
    min_listeners=0,
    capacity_margin=0.0,
    seed=42,
)
_ML_1M = ModelConfig(dim=50, layers=2, heads=1, ffn_multiply=1, max_history=200, dropout=0.2)
_ML_20M = ModelConfig(dim=256, layers=2, heads=4, ffn_multiply=4, max_history=200, dropout=0.2)

PRESETS: dict[str, Preset] = {
    "ML-1M": Preset(_ML_1M, _PAPER),
    "ML-1M-Large": Preset(replace(_ML_1M, layers=8, heads=2), _PAPER),
    "ML-20M": Preset(_ML_20M, _PAPER),
    "ML-20M-Large": Preset(replace(_ML_20M, layers=8, heads=8), _PAPER),
    # Width and depth are published; heads, ffn_multiply and history length are the ML-20M values, a choice.
    "Industrial": Preset(replace(_ML_20M, layers=4), TrainConfig()),
    "daily": Preset(ModelConfig(), TrainConfig()),
    # Thousands of listeners instead of millions: small batches, so that an epoch has enough steps (`fuxi demo`,
    # which adds the artists of its catalogue and the content channel: not every data set and system has them).
    "demo": Preset(
        ModelConfig(dim=64),
        TrainConfig(
            item_optimizer="adamw",
            lr=3e-3,
            batch_size=32,
            epochs=6,
            warm_start_epochs=1,
            target_window=20,
            ema=0.99,
        ),
    ),
}


def preset(name: str) -> Preset:
    """A preset by name. Raises ValueError that lists the names."""
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is unknown: use one of {', '.join(PRESETS)}")
    return PRESETS[name]
