"""Published settings stay what was published."""

import pytest

from fuxi_beta.models.fuxi_beta import FuXiBeta
from fuxi_beta.presets import PRESETS, preset


@pytest.mark.parametrize(
    ("name", "dim", "layers", "heads", "ffn_multiply"),
    [
        ("ML-1M", 50, 2, 1, 1),
        ("ML-1M-Large", 50, 8, 2, 1),
        ("ML-20M", 256, 2, 4, 4),
        ("ML-20M-Large", 256, 8, 8, 4),
    ],
)
def test_paper_presets(name, dim, layers, heads, ffn_multiply):
    model, train = preset(name).model, preset(name).train
    assert (model.dim, model.layers, model.heads, model.ffn_multiply) == (dim, layers, heads, ffn_multiply)
    assert (model.max_history, model.dropout, model.temporal) == (200, 0.2, "pow")
    assert (train.epochs, train.batch_size, train.negatives, train.temperature) == (101, 128, 128, 0.05)
    assert (train.lr, train.betas, train.weight_decay, train.item_optimizer) == (1e-3, (0.9, 0.98), 0.0, "adamw")
    assert (train.protocol, train.mode) == ("leave_one_out", "all")


def test_ml_1m_has_the_parameters_of_the_published_network():
    """Positions, then per layer: W, w, a, b, the first Linear with bias, W1, W3, W2."""
    layer = 50 * 150 + 421 + 2 + (100 * 50 + 50) + 3 * 50 * 50
    network = FuXiBeta(preset("ML-1M").model)
    assert sum(parameter.numel() for parameter in network.parameters()) == 211 * 50 + 2 * layer


def test_an_unknown_preset_lists_the_names():
    with pytest.raises(ValueError, match="ML-1M-Large"):
        preset("ML-2M")
    assert preset("daily").train.protocol == preset("Industrial").train.protocol == "next_day"
    assert set(PRESETS) == {"ML-1M", "ML-1M-Large", "ML-20M", "ML-20M-Large", "Industrial", "daily", "demo"}
